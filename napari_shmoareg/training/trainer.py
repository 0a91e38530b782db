"""learn(): a training run, from its data set to its last step, as a generator of events.

Every `yield` is a safe point to stop: the run can be resumed from what is on disk.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from napari_shmoareg.datasets import Dataset, split_dataset
from napari_shmoareg.datasets.pairs import NamedPairs
from napari_shmoareg.errors import InputError
from napari_shmoareg.io import load_network
from napari_shmoareg.io.model_card import checksum_of
from napari_shmoareg.io.untrusted import check_fields
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.registration.resources import (
    check_training_memory,
    choose_bfloat16,
    find_device,
    too_large_for,
    training_memory,
)
from napari_shmoareg.training.checkpoint import load_training_state, network_of_state
from napari_shmoareg.training.distributed import TrainingGroup
from napari_shmoareg.training.expert_training import start_experts, with_choice_bias
from napari_shmoareg.training.logs import Event, event, phase
from napari_shmoareg.training.monitor import ADDED_UP, routing_watch
from napari_shmoareg.training.plan import (
    Plan,
    describe_start,
    random_network,
    read_plan,
    starts_from_scratch,
    write_plan,
)
from napari_shmoareg.training.preparation import (
    TrainingData,
    prepare_data,
    run_on_main,
    synthetic_data,
)
from napari_shmoareg.training.recipes import RunningMean
from napari_shmoareg.training.run_folder import RunControl, RunFolder, RunLock, saved_step
from napari_shmoareg.training.run_writer import (
    MEASURES,
    Position,
    RunWriter,
    carry_over_best,
    combine_validations,
    validate_pairs,
)
from napari_shmoareg.training.step import (
    TERMS,
    NotFiniteError,
    Step,
    fine_tune,
    make_optimiser,
    passes_after,
    with_config,
)
from napari_shmoareg.training.synthesis import Subject, SyntheticPairs
from napari_shmoareg.training.validation import ValidationResult, write_preview


def divergence_error(
    error: NotFiniteError, train: NamedPairs | SyntheticPairs, step: int, folder: RunFolder
) -> InputError:
    """Make an error for a loss that is not finite: scans, saved weights and what to do.

    Parameters
    ----------
    error : NotFiniteError
    train : NamedPairs or SyntheticPairs
    step : int
        The last step with a finite loss and gradient; its weights may already be damaged.
    folder : RunFolder
    """
    names = "; ".join(train.pair_name(index) for index in error.pairs)
    last = folder.pretrained if folder.pretrained.is_file() else folder.last
    kept = f"The weights of step {step}, the one before, are saved in {last}. " if step else ""
    start = f" --from {last}, if they still register well," if step else ""
    if folder.best.is_file():
        kept += f"The best by validation are in {folder.best}. "
        start = f" --from {folder.best}"
    scans = ", or check these scans for extreme values and leave them out"
    scans = "" if isinstance(train, SyntheticPairs) else scans
    return InputError(
        f"{str(error).split('; the weights')[0]} ({names}). {kept}Resuming would fail there"
        f" again: start another run{start} with a lower --learning-rate{scans}."
    )


RECENT = 20  # steps used to estimate the remaining time
POLL = 0.5  # seconds between two checks for a request while paused


class Trainer:
    """A training run in this process.

    Parameters
    ----------
    plan : Plan
    network : SHMoAReg
    optimiser : Adam
    data : TrainingData
    position : Position
        Where it starts.
    folder : RunFolder
    writer : RunWriter or None
        Writes the run folder; None in all processes but the main one.
    group : TrainingGroup
    control : RunControl
    lock : RunLock or None
    mean : RunningMean or None
        Follows the network; its weights are validated instead.
    """

    def __init__(
        self,
        plan: Plan,
        network: SHMoAReg,
        optimiser: torch.optim.Adam,
        data: TrainingData,
        position: Position,
        folder: RunFolder,
        writer: RunWriter | None,
        group: TrainingGroup,
        control: RunControl,
        lock: RunLock | None,
        mean: RunningMean | None = None,
    ) -> None:
        self._plan, self._network, self._optimiser, self._data = (
            plan,
            network,
            optimiser,
            data,
        )
        self._position, self._folder, self._writer = position, folder, writer
        self._group, self._control, self._lock = group, control, lock
        self._mean, self._result = mean, network if mean is None else mean.network
        self._watch = routing_watch(folder.loads, network.config.top_k, last=position.step)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._validation_seconds = 0.0  # duration of the last validation, s

    def run(self) -> Iterator[Event]:
        """Run the remaining steps; the last event is "end"."""
        steps = self._plan.settings.steps
        self._set_status("learning")
        yield self._training()
        reason = yield from self._between_steps(last=self._position.step >= steps)
        if not reason:
            for done in self._steps():
                yield from self._record_step(done)
                reason = yield from self._between_steps(last=done.step >= steps)
                if reason:
                    break
        yield from self._save()
        best, step = self._position.best.get("step"), self._position.step
        yield event("end", reason=reason, step=step, weights=self._folder.weights, best_step=best)

    def _between_steps(self, last: bool) -> Generator[Event, None, str]:
        """Validate, save and handle requests between two steps; return the reason to end, or ""."""
        limit = 60 * self._plan.run.minutes
        late = self._group.any(bool(limit) and self._position.seconds >= limit)
        validated = yield from self._validate(last=last or late)
        if (reason := (yield from self._handle_requests())) or late or last:
            return reason or ("minutes" if late and not last else "finished")
        if validated or (
            self._position.step and self._position.step % self._plan.run.save_every == 0
        ):
            yield from self._save()
        return ""

    def _steps(self) -> Iterator[Step]:
        """Run the steps; errors name the scans."""
        try:
            yield from fine_tune(
                self._network,
                self._data.train,
                self._plan.settings,
                optimiser=self._optimiser,
                start=self._position.step,
                group=self._group,
            )
        except InputError as error:
            if self._writer is not None and self._writer.saved < self._position.step:
                self._writer.save(self._position)
            if isinstance(error, NotFiniteError):
                raise divergence_error(
                    error, self._data.train, self._position.step, self._folder
                ) from error
            raise
        except RuntimeError as error:
            device = next(self._network.parameters()).device
            too_large = too_large_for(device, self._data.grids[0], error)
            if too_large is None:
                raise
            raise too_large from error

    def _record_step(self, step: Step) -> Iterator[Event]:
        """Record a step."""
        pairs = self._data.train
        if self._mean is not None:
            self._mean.follow(self._network)
        self._position = self._position.after(step)
        self._recent.append(step.seconds)
        for index, why in step.skipped:
            if self._writer is not None:
                self._writer.skipped(step.step, pairs.pair_name(index), why)
            yield event("skipped", pair=pairs.pair_name(index), why=why, step=step.step)
        if self._writer is not None:
            self._writer.step(step, "; ".join(pairs.pair_name(index) for index in step.pairs))
        losses = {name: getattr(step, name) for name in TERMS}
        yield event(
            "step",
            step=step.step,
            steps=self._plan.settings.steps,
            **losses,
            gradient=step.gradient,
            rate=step.rate,
            seconds=round(step.seconds, 4),
            pairs=[pairs.names_of(index) for index in step.pairs],
            left_seconds=round(self._seconds_left(), 1),
        )
        if step.step % ADDED_UP == 0:
            yield self._loads()

    def _loads(self) -> Event:
        """Write the selections since the last row, and report alarms."""
        counts, step = self._position.counts, self._position.step
        self._watch.add(step, counts)
        self._position = self._position.reset_counts()
        shares = self._watch.shares
        if self._writer is not None:
            self._writer.loads(step, counts, shares)
        rounded = {gate: [round(share, 5) for share in row] for gate, row in shares.items()}
        return event(
            "load",
            step=step,
            shares=rounded,
            alarms=[alarm._asdict() for alarm in self._watch.alarms],
        )

    def _validate(self, last: bool) -> Generator[Event, None, bool]:
        """Validate if it is due; return whether it was done."""
        every, pairs, step = (
            self._plan.run.validate_every,
            self._data.validation,
            self._position.step,
        )
        due = every and len(pairs) and (last or step % every == 0)
        if not due or self._position.validated == step:
            return False
        found: list[ValidationResult] = []
        done = 0.0
        work = partial(validate_pairs, self._result, self._data, step, found)
        for result in run_on_main(self._group, work, until=lambda: self._control.stop):
            done = result.get("done", done)
            yield result
        # interrupted by a stop: validation is repeated when the run is resumed
        if self._group.any(self._group.is_main and done < 1):
            return False
        self._position = replace(self._position, validated=step)
        if found:
            yield from self._record_validation(combine_validations(found))
        yield self._training()
        return True

    def _training(self) -> Event:
        """Event: steps follow."""
        step, steps = self._position.step, self._plan.settings.steps
        return phase("training", step / steps, f"step {step} of {steps}")

    def _record_validation(self, found: ValidationResult) -> Iterator[Event]:
        """Record a validation, and write a preview."""
        step, writer, pairs = self._position.step, self._writer, self._data.validation
        self._position, best = replace(self._position, judges=pairs.pair_names).with_validation(
            found
        )
        self._validation_seconds = found.seconds
        if writer is None:
            return
        writer.validated(self._position, found, best)
        figures = {name: getattr(found, name) for name in MEASURES} | dict(found.by_kind)
        yield event("validation", step=step, **figures, best=best, seconds=round(found.seconds, 3))
        if best:
            yield event("saved", step=step, what="best")
        try:
            write_preview(self._folder.preview, self._result, pairs[0], pairs.names[0], step)
        # only a preview; a full disk is reported by the next save
        except (InputError, OSError) as error:
            yield event("skipped", pair=pairs.pair_name(0), why=f"no preview: {error}", step=step)
        else:
            yield event("preview", step=step, folder=self._folder.preview)

    def _save(self) -> Iterator[Event]:
        """Save the state, unless it is saved already."""
        if self._writer is None or not self._writer.is_due(self._position):
            return
        self._writer.save(self._position)
        yield event("saved", step=self._position.step, what="state")

    def _handle_requests(self) -> Generator[Event, None, str]:
        """Handle pause and stop requests; return "stopped" to end the run, else ""."""
        control, group = self._control, self._group
        if not group.any(control.stop or control.pause):
            return ""
        if not group.any(control.stop):
            yield from self._save()
            self._set_status("paused")
            yield event("paused", step=self._position.step)
            while group.any(control.pause) and not group.any(control.stop):
                time.sleep(POLL)
            self._set_status("learning")
            if not group.any(control.stop):
                yield event("resumed", step=self._position.step)
                return ""
        return "stopped"

    def _seconds_left(self) -> float:
        """Estimate the remaining seconds."""
        plan, position = self._plan, self._position
        left = sum(self._recent) / len(self._recent) * (plan.settings.steps - position.step)
        if plan.run.minutes:
            left = min(left, max(0.0, 60 * plan.run.minutes - position.seconds))
        every = plan.run.validate_every
        validations = (
            (plan.settings.steps - position.step) / every
            if every and len(self._data.validation)
            else 0
        )
        return left + validations * self._validation_seconds

    def _set_status(self, doing: str) -> None:
        if self._lock is not None:
            self._lock.set_status(doing)


def learn(
    path: str | Path,
    plan: Plan,
    *,
    resume: bool = False,
    device: str = "auto",
    group: TrainingGroup | None = None,
    control: RunControl | None = None,
) -> Iterator[Event]:
    """Start or resume a run, until the last step, the time limit or a stop request.

    Parameters
    ----------
    path : str or Path
        The run folder: new or empty, or with `resume` that of a run.
    plan : Plan
        From `make_plan`, or from `read_plan` for an existing run.
    resume : bool
    device : {"auto", "cpu", "cuda"}
    group : TrainingGroup, optional
        Processes that train together. All yield events; only those of the main process should be
        shown.
    control : RunControl, optional
        For requests from within this process; requests in the file ``wish`` of the folder are
        always read.

    Yields
    ------
    dict
        Events; the last one is "end".

    Raises
    ------
    InputError
        If the data set, the weights, a setting or the folder is invalid; if a loss or a gradient is
        not finite; if the disk is full. Saved files stay intact.
    """
    group, folder = group or TrainingGroup(), RunFolder(path)
    control = control or RunControl(folder.request)
    if not group.is_main:
        control.ignore_file()
    run_device = group.device or find_device(device)
    yield phase("reading", 0.0, f"opening {plan.dataset.path}")
    dataset = _open_dataset(plan, folder, resume)
    if not resume and isinstance(dataset, Dataset):
        # raises before anything is written
        split_dataset(dataset, plan.run.split, plan.run.split_seed)
    run_lock: AbstractContextManager[RunLock | None] = nullcontext()
    if group.is_main:
        run_lock = folder.resume(plan) if resume else folder.start(plan)
    with run_lock as lock:
        group.wait()
        if lock is not None:
            control.clear()
        data: TrainingData | None
        if isinstance(dataset, Dataset):
            data = yield from prepare_data(plan, dataset, folder, group, lambda: control.stop)
        else:
            data = yield from synthetic_data(plan, dataset, run_device)
        if data is None:
            yield event(
                "end",
                reason="stopped",
                step=saved_step(folder) or 0,
                weights=folder.weights,
                best_step=None,
            )
            return
        if resume and lock is not None and read_plan(folder.run_json).dataset != plan.dataset:
            write_plan(folder.run_json, plan)  # moved, but the same
        plan, why = _decide_passes(folder, plan, data, group)
        network, optimiser, mean, position, resumed = _load_or_start(folder, plan, run_device)
        position, lost = carry_over_best(position, data.validation, folder)
        data = replace(data, problems=(*data.problems, *lost))
        writer = None
        if group.is_main:
            writer = RunWriter(folder, plan, network, optimiser, position, data, mean)
        yield _begin(folder, plan, data, run_device, group, position if resumed else None) | {
            "passes": why
        }
        trainer = Trainer(
            plan, network, optimiser, data, position, folder, writer, group, control, lock, mean
        )
        try:
            yield from trainer.run()
        finally:
            if writer is not None:
                writer.close()


def _open_dataset(plan: Plan, folder: RunFolder, resume: bool) -> Dataset | list[Subject]:
    """Open the data set; if it is missing, say how to resume with its new path."""
    try:
        return plan.dataset.open()
    except InputError as error:
        if not resume or Path(plan.dataset.path).exists():
            raise
        command = f"fine-tune DATASET --out {folder.path} --resume"
        if plan.is_synthetic:
            command = f"pretrain MAPS --run {folder.path}"
        raise InputError(
            f"{error} If it was moved, give its new path: shmoareg {command}"
        ) from error


def _decide_passes(
    folder: RunFolder, plan: Plan, data: TrainingData, group: TrainingGroup
) -> tuple[Plan, str]:
    """Set the passes of the trained weights, before the first state is saved; return the plan and
    the reason.
    """
    if folder.state.is_file():
        return plan, "as when the run started"
    if plan.is_synthetic:
        return plan, "as in the recipe"
    learned, used = data.grids
    passes, why = passes_after(plan.network_config, plan.settings, learned=learned, used=used)
    changed = replace(plan, config={**plan.config, "passes": list(passes)})
    if group.is_main and changed != plan:
        write_plan(folder.run_json, changed)
    return changed, why


def _load_or_start(
    folder: RunFolder, plan: Plan, device: torch.device
) -> tuple[SHMoAReg, torch.optim.Adam, RunningMean | None, Position, bool]:
    """Load network, optimiser, running mean and position, or initialise them; return whether they
    were loaded.
    """
    if not folder.state.is_file():
        network = _start_network(plan, device)
        mean = RunningMean(network, plan.averaging) if plan.averaging else None
        return network, make_optimiser(network, plan.settings), mean, Position(), False
    network = network_of_state(folder.path, plan.network_config).to(device)
    optimiser = make_optimiser(network, plan.settings)
    mean = RunningMean(network, plan.averaging) if plan.averaging else None
    into = None if mean is None else mean.network
    _, history = load_training_state(folder.path, network, optimiser, mean=into)
    try:
        check_fields(Position, history[-1])
        position = Position(**history[-1])
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder.state} has no valid position of the run ({error}): it is from another"
            " version of shmoareg. Start another run in another folder, --from"
            f" {folder.weights}."
        ) from error
    if mean is not None:
        mean.seen = position.step
    return network, optimiser, mean, position, True


def _start_network(plan: Plan, device: torch.device) -> SHMoAReg:
    """Make the network of the first step: with random weights, or those that the plan names."""
    if starts_from_scratch(plan.weights):
        network = random_network(plan.network_config, plan.settings.seed).to(device)
        start_experts(network, plan.settings)
        return network
    name = str(plan.weights["name"])
    network = load_network(name, device=device)
    network = with_choice_bias(network) if plan.network_config.choice_bias else network
    network = with_config(network, plan.network_config)
    if checksum_of(name) != plan.weights["sha256"]:
        raise InputError(
            f"The weights '{name}' are not those that the run was started with (their checksum"
            " differs), and the run has saved nothing yet. Restore them, or start another run in"
            " another folder."
        )
    return network


def _begin(
    folder: RunFolder,
    plan: Plan,
    data: TrainingData,
    device: torch.device,
    group: TrainingGroup,
    position: Position | None,
) -> Event:
    """Make the event "begin", which describes the run; raise if a step does not fit into memory."""
    shape = data.grids[0]
    memory = training_memory(plan.network_config, shape, device, plan.settings)
    check_training_memory(plan.network_config, shape, device, plan.settings)
    bfloat16, why = choose_bfloat16(plan.settings.bfloat16, device)
    return event(
        "begin",
        run=folder.path,
        pid=os.getpid(),
        device=str(device),
        processes=group.size,
        settings=plan.settings.to_dict(),
        run_settings=plan.run.to_dict(),
        weights=plan.weights["name"],
        begins_from=describe_start(plan.weights),
        drawn_from=plan.synthetic.content if plan.is_synthetic else None,
        pairs=data.pairs,
        scans=data.scans,
        validated=len(data.validation),
        problems=data.problems,
        shape=shape,
        memory=memory._asdict(),
        bfloat16={"used": bfloat16, "why": why},
        resumed_at=None if position is None else position.step,
        steps=plan.settings.steps,
        best=None if position is None else position.best or None,
    )
