"""learn(): a run from its data set to its last step, as a generator of events.

Every `yield` is a safe place to stop: what is on the disk can be gone on with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from napari_shmoareg.engine.device import choose_bfloat16, find_device
from napari_shmoareg.engine.expert_training import start_experts, with_choice_bias
from napari_shmoareg.engine.fine_tuning import make_optimiser
from napari_shmoareg.engine.memory import check_training_memory, training_memory
from napari_shmoareg.engine.passes import passes_after, with_passes
from napari_shmoareg.engine.team import Team
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.checkpoint import load_network
from napari_shmoareg.io.datasets import Dataset, split_dataset
from napari_shmoareg.io.training_run.events import Event, event, phase
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.from_nothing import begins_from_nothing, random_network, start_of
from napari_shmoareg.io.training_run.judging import still_best
from napari_shmoareg.io.training_run.keeping import Keeper, Position
from napari_shmoareg.io.training_run.lock import RunLock
from napari_shmoareg.io.training_run.plan import Plan, read_plan, write_plan
from napari_shmoareg.io.training_run.preparing import Material, prepare
from napari_shmoareg.io.training_run.standing import saved_step
from napari_shmoareg.io.training_run.stepping import Stepping
from napari_shmoareg.io.training_run.wishes import Wishes
from napari_shmoareg.io.training_state import load_training_state, network_of_state
from napari_shmoareg.io.untrusted import check_fields
from napari_shmoareg.io.weights import checksum_of
from napari_shmoareg.model import SHMoAReg


def learn(
    path: str | Path,
    plan: Plan,
    *,
    resume: bool = False,
    device: str = "auto",
    team: Team | None = None,
    wishes: Wishes | None = None,
) -> Iterator[Event]:
    """Begin a run, or go on with it, until its last step, its time is over or it is asked to stop.

    Parameters
    ----------
    path : str or Path
        The run's folder: new or empty, or with `resume` one that holds a run.
    plan : Plan
        From `make_plan`, or `read_plan` of the folder.
    resume : bool
    device : {"auto", "cpu", "cuda"}
    team : Team, optional
        Processes that learn together.  All yield events; those of the leader are to be told.
    wishes : Wishes, optional
        To ask from within this process; what is written to the folder's ``wish`` is heard in any case.

    Yields
    ------
    dict
        Events; the last one is "end".

    Raises
    ------
    InputError
        If something is wrong with the data set, the weights, a setting or the folder; if a loss or a gradient is
        not finite; if the disk is full.  What was saved stays whole.
    """
    team, folder = team or Team(), RunFolder(path)
    wishes = wishes or Wishes(folder.wish)
    if not team.leader:
        wishes.follow()
    place = team.device or find_device(device)
    yield phase("reading", 0.0, f"opening {plan.dataset.path}")
    dataset = _opened(plan, folder, resume)
    if not resume:
        split_dataset(dataset, plan.run.split, plan.run.split_seed)  # refuses before anything is written
    held: AbstractContextManager[RunLock | None] = nullcontext()
    if team.leader:
        held = folder.gone_on(plan) if resume else folder.begun(plan)
    with held as lock:
        team.wait()
        if lock is not None:
            wishes.forget()
        beat = lock.beat if lock is not None else _no_beat
        material = yield from prepare(plan, dataset, folder, team, lambda: wishes.stop, beat)
        if material is None:
            yield event("end", reason="stopped", step=saved_step(folder) or 0, weights=folder.weights, best_step=None)
            return
        if resume and lock is not None and read_plan(folder.told).dataset != plan.dataset:
            write_plan(folder.told, plan)  # moved, and the same
        plan, why = _with_passes(folder, plan, material, team)
        network, optimiser, position, going_on = _taken_up(folder, plan, place)
        position, lost = still_best(position, material.validation, folder)
        material = replace(material, problems=(*material.problems, *lost))
        keeper = None
        if team.leader:
            keeper = Keeper(folder, plan, network, optimiser, position, material.scans)
        yield _begin(folder, plan, material, place, team, position if going_on else None) | {"passes": why}
        stepping = Stepping(plan, network, optimiser, material, position, folder, keeper, team, wishes, lock)
        try:
            yield from stepping.run()
        finally:
            if keeper is not None:
                keeper.close()


def _opened(plan: Plan, folder: RunFolder, resume: bool) -> Dataset:
    """The data set; where it is gone, how a run goes on in its new place."""
    try:
        return plan.dataset.open()
    except InputError as error:
        if not resume or Path(plan.dataset.path).exists():
            raise
        raise InputError(
            f"{error} If it was moved, give its new place: shmoareg fine-tune DATASET --out {folder.path} --resume"
        ) from error


def _with_passes(folder: RunFolder, plan: Plan, material: Material, team: Team) -> tuple[Plan, str]:
    """The plan with the passes in which the new weights will register, and why; decided before the first state."""
    if folder.state.is_file():
        return plan, "as the run began"
    learned, used = material.grids
    passes, why = passes_after(plan.network_config, plan.settings, learned=learned, used=used)
    changed = replace(plan, config={**plan.config, "passes": list(passes)})
    if team.leader and changed != plan:
        write_plan(folder.told, changed)
    return changed, why


def _taken_up(folder: RunFolder, plan: Plan, device: torch.device) -> tuple[SHMoAReg, torch.optim.Adam, Position, bool]:
    """Network, optimiser and position as they were saved, or as they begin; and which of the two."""
    if folder.state.is_file():
        network = network_of_state(folder.path, plan.network_config).to(device)
        optimiser = make_optimiser(network, plan.settings)
        _, history = load_training_state(folder.path, network, optimiser)
        try:
            check_fields(Position, history[-1])
            return network, optimiser, Position(**history[-1]), True
        except (IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder.state} does not say where the run stood ({error}): it is of another version of shmoareg. "
                f"Begin another run in another folder, --from {folder.weights}."
            ) from error
    if begins_from_nothing(plan.weights):
        network = random_network(plan.network_config, plan.settings.seed).to(device)
        start_experts(network, plan.settings)
        return network, make_optimiser(network, plan.settings), Position(), False
    name = str(plan.weights["name"])
    network = with_passes(load_network(name, device=device), plan.network_config.passes)
    network = with_choice_bias(network) if plan.network_config.choice_bias else network
    if checksum_of(name) != plan.weights["sha256"]:
        raise InputError(
            f"The weights '{name}' are not those that the run was begun with (their checksum differs), and nothing of "
            "it was saved yet. Put them back, or begin another run in another folder."
        )
    return network, make_optimiser(network, plan.settings), Position(), False


def _begin(
    folder: RunFolder, plan: Plan, material: Material, device: torch.device, team: Team, position: Position | None
) -> Event:
    """The event that says what is going to be done; refuses what would not fit into memory."""
    shape = material.grids[0]
    memory = training_memory(plan.network_config, shape, device, plan.settings)
    check_training_memory(plan.network_config, shape, device, plan.settings)
    bfloat16, why = choose_bfloat16(plan.settings.bfloat16, device)
    return event(
        "begin",
        run=folder.path,
        pid=os.getpid(),
        device=str(device),
        processes=team.size,
        settings=plan.settings.to_dict(),
        run_settings=plan.run.to_dict(),
        weights=plan.weights["name"],
        begins_from=start_of(plan.weights),
        pairs=material.pairs,
        scans=material.scans,
        validated=len(material.validation),
        problems=material.problems,
        shape=shape,
        memory=memory._asdict(),
        bfloat16={"used": bfloat16, "why": why},
        resumed_at=None if position is None else position.step,
        steps=plan.settings.steps,
        best=None if position is None else position.best or None,
    )


def _no_beat() -> None:
    """A follower holds no lock."""
