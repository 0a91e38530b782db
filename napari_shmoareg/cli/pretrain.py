"""``shmoareg pretrain``: weights from drawn pairs alone, in runs that can be cut into pieces."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.errors import CANCELLED, say
from napari_shmoareg.cli.options import Debug, Device, DeviceOption, Quiet
from napari_shmoareg.cli.progress import progress
from napari_shmoareg.cli.weights import chosen_device
from napari_shmoareg.geometry import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_shmoareg.engine.conform import Conformed
    from napari_shmoareg.engine.fine_tuning import Step
    from napari_shmoareg.engine.pretraining import Recipe, RunningMean
    from napari_shmoareg.model import SHMoAReg

SAVE_EVERY, VALIDATE_EVERY = 100, 400
WEIGHTS = "weights.safetensors"


def pretrain(
    maps: Annotated[Path, typer.Argument(metavar="MAPS", help="Folder of label maps to draw pairs from.")],
    run: Annotated[
        Path, typer.Option("--run", metavar="DIR", help="Folder of the run: state, log, weights. Goes on where it is.")
    ],
    recipe: Annotated[str, typer.Option("--recipe", help="small (for a CPU), paper (for a GPU) or tiny.")] = "small",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps in all.", show_default="the recipe's")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Stop after so long; the same command goes on later.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides weights and pairs.", show_default="1")] = None,
    device: DeviceOption = Device.auto,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Learn weights from images that are drawn, not scanned.

    Each step draws a pair of images from label maps and random shapes and learns from both orders of it.
    A quarter of the label maps is held out for the validation figures in the log.  Ctrl-C and --minutes
    keep the state: the same command goes on with the same pairs.
    """
    import torch

    from napari_shmoareg.engine.fine_tuning import make_optimiser
    from napari_shmoareg.engine.pretraining import recipe as named
    from napari_shmoareg.io.label_maps import read_subjects
    from napari_shmoareg.io.training_state import load_training_state
    from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

    plan = named(recipe, steps=steps, seed=seed)
    _make_folder(run)
    check_same_plan(run, plan)
    torch.manual_seed(plan.settings.seed)
    network = SHMoAReg(SHMoARegConfig.preset(plan.preset)).to(chosen_device(device))
    optimiser = make_optimiser(network, plan.settings)
    start, history = 0, list[dict[str, Any]]()
    if (run / "training.safetensors").exists():
        start, history = load_training_state(run, network, optimiser)
    subjects = read_subjects(maps)
    finished = learn(network, optimiser, plan, subjects, run, (start, history), minutes, quiet)
    if not finished:
        say(f"Stopped; the state is in {run}. The same command goes on.")
        raise typer.Exit(CANCELLED)


def learn(
    network: SHMoAReg,
    optimiser: Any,
    plan: Recipe,
    subjects: Sequence[Any],
    run: Path,
    before: tuple[int, list[dict[str, Any]]],
    minutes: float | None,
    quiet: bool,
) -> bool:
    """Run steps until the last one, Ctrl-C or the time; whether the last one was reached."""
    from napari_shmoareg.cli.fine_tune import asked_to_stop
    from napari_shmoareg.engine.fine_tuning import fine_tune
    from napari_shmoareg.engine.pretraining import validation_pairs
    from napari_shmoareg.io.training_state import save_training_state

    start, history = before
    held = validation_pairs(subjects, plan.pairs(subjects).phases[-1][1])
    began, recent = time.perf_counter(), list[Any]()
    last, mean = start, _running_mean(network, plan, run, start)
    with asked_to_stop() as asked, progress(quiet) as report:
        for step in fine_tune(network, plan.pairs(subjects), plan.settings, optimiser=optimiser, start=start):
            last = step.step
            mean.follow(network)
            recent.append(step)
            report(f"pretraining, loss {step.total:.3f}", step.step / plan.settings.steps)
            late = minutes is not None and time.perf_counter() - began > 60 * minutes
            end = bool(asked) or late or step.step == plan.settings.steps
            if end or step.step % SAVE_EVERY == 0:
                history.append(_row(recent, mean.network, held if end or step.step % VALIDATE_EVERY == 0 else []))
                recent = []
                _write(mean.network, plan, history, run, last)
                save_training_state(run, network, optimiser, step.step, history)
            if end:
                break
    return last >= plan.settings.steps


def _running_mean(network: SHMoAReg, plan: Recipe, run: Path, start: int) -> RunningMean:
    """The mean of the weights as the run left it; begun anew where the weights are not of the state's step.

    Weights and state are two files: a run that was killed between the two leaves weights that are ahead.
    """
    from napari_shmoareg.engine.pretraining import RunningMean
    from napari_shmoareg.io.checkpoint import load_network, read_card

    mean, weights = RunningMean(network, plan.averaging), run / WEIGHTS
    if not start:
        return mean
    step = read_card(weights).get("steps") if weights.is_file() else None
    if step == start:
        device = next(network.parameters()).device
        mean.network.load_state_dict(load_network(weights, device=device).state_dict())
        mean.seen = start
    else:
        found = "are missing" if step is None else f"are of step {step}"
        say(
            f"Note: the state in {run} is of step {start}, but its weights {found}; the running mean of the weights "
            "begins anew from the state's network."
        )
    return mean


def _make_folder(run: Path) -> None:
    """The run's folder, made if missing."""
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file; the name of a new folder, or of a run's folder, was expected for --run.")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot make the folder {run}: {error.strerror}. Name a place that you may write to."
        ) from error


def check_same_plan(run: Path, plan: Recipe) -> None:
    """A run goes on with the settings it began with.

    Raises
    ------
    InputError
        If they are others, or the file that tells them is damaged.
    """
    from napari_shmoareg.io.atomic import writing

    told = run / "recipe.json"
    now = json.loads(json.dumps(asdict(plan)))
    if told.exists():
        try:
            then = json.loads(told.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                f"{told} is damaged ({error}): it tells which settings the run was begun with. Delete it to go on with "
                "the settings given now, or give another --run."
            ) from error
        if then != now:
            raise InputError(
                f"The run in '{run}' was begun with other settings (see {told}); give those, or another --run."
            )
        return
    with writing(told) as temporary:
        temporary.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")


def _row(steps: Sequence[Step], network: SHMoAReg, held: Sequence[Conformed]) -> dict[str, Any]:
    """Means of some steps, and a validation."""
    from napari_shmoareg.engine.pretraining import validate

    names = ("total", "similarity", "smoothness", "routing", "overlap", "rate", "seconds")
    row: dict[str, Any] = {"step": steps[-1].step}
    row["minutes"] = sum(step.seconds for step in steps) / 60
    row |= {name: sum(getattr(step, name) for step in steps) / len(steps) for name in names}
    if held:
        row |= {f"validation_{key}": value for key, value in validate(network, held)._asdict().items()}
    return row


def _write(network: SHMoAReg, plan: Recipe, history: list[dict[str, Any]], run: Path, steps: int) -> None:
    """The weights so far, with a card, and the log as a table."""
    from napari_shmoareg.io.checkpoint import save_network
    from napari_shmoareg.io.tables import write_table

    card = {
        "name": run.name,
        "drawn_from": "label maps and random shapes; no scan of a person was seen",
        "recipe": asdict(plan),
        "steps": steps,
        "minutes": round(sum(row["minutes"] for row in history), 1),
    }
    save_network(network, run / WEIGHTS, card=card)
    columns = sorted({key for row in history for key in row}, key=lambda key: (key != "step", key))
    write_table([{key: row.get(key, "") for key in columns} for row in history], run / "log.csv")
