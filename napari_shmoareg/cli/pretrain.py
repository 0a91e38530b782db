"""``shmoareg pretrain``: weights from synthetic pairs, in runs that can be interrupted and
resumed.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.console import CANCELLED, progress, say
from napari_shmoareg.cli.options import (
    STEP,
    Debug,
    DeviceOption,
    Quiet,
    settings_in,
    with_settings,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.model_card import chosen_device
from napari_shmoareg.io.untrusted import read_object
from napari_shmoareg.training.settings import FineTuning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.conform import Conformed
    from napari_shmoareg.training.recipes import Recipe, RunningMean
    from napari_shmoareg.training.step import Step


WEIGHTS, PLAN = "weights.safetensors", "recipe.json"
# of a config: how the weights are used or learned, not what they are
FREE = {
    "size",
    "passes",
    "diffeomorphic",
    "integration_steps",
    "drop_path",
    "detach_weights",
    "routing_only",
}


def as_begun(
    run: Path, plan: Recipe, weights: str | None = None, *, bfloat16_given: bool = False
) -> Recipe:
    """The plan of a run: it goes on with the settings, and from the weights, that it began with.

    Parameters
    ----------
    run : Path
    plan : Recipe
    weights : str, optional
    bfloat16_given : bool
        Otherwise the run goes on with its own choice: runs from before there was "auto" chose for
        themselves.

    Raises
    ------
    InputError
        If they are others, or the file that tells them is damaged.
    """
    told = run / PLAN
    if not told.exists():
        return plan
    try:
        then = _completed(read_object(told, "the settings of a run"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{told} is damaged ({error}): it tells which settings the run was begun with. Delete"
            " it to go on with the settings given now, or give another --run."
        ) from error
    if not bfloat16_given:
        plan = replace(plan, settings=replace(plan.settings, bfloat16=then["settings"]["bfloat16"]))
    if then != _told(plan, weights):
        raise InputError(
            f"The run in '{run}' was begun with other settings (see {told}); give those, or another"
            " --run."
        )
    return plan


def _completed(then: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with the defaults of those that its version did not have.

    Raises
    ------
    ValueError, TypeError
        If they are damaged.
    """
    from napari_shmoareg.training.settings import FineTuning, upgraded
    from napari_shmoareg.training.synthesis_settings import SynthesisSettings

    parts = {name: then.get(name, {}) for name in ("settings", "drawing")}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError("names and values were expected in settings and drawing")
    settings = FineTuning().to_dict() | upgraded(parts["settings"])
    if settings["bfloat16"] not in ("auto", "on", "off"):
        raise ValueError(f"bfloat16 is {settings['bfloat16']!r:.80}")
    drawing = json.loads(json.dumps(asdict(SynthesisSettings()))) | parts["drawing"]
    return (
        {"from": None, "config": {}} | then | {"settings": settings, "drawing": drawing}
    )  # older runs all began from random weights of a preset


def write_plan(run: Path, plan: Recipe, weights: str | None = None) -> None:
    """Note what a run is begun with, if that was not done."""
    from napari_shmoareg.io.files import writing

    if not (run / PLAN).exists():
        with writing(run / PLAN) as temporary:
            temporary.write_text(
                json.dumps(_told(plan, weights), indent=2) + "\n", encoding="utf-8"
            )


def _told(plan: Recipe, weights: str | None) -> dict[str, Any]:
    """What decides a run, as it comes back from JSON."""
    told: dict[str, Any] = json.loads(json.dumps({**asdict(plan), "from": weights}))
    return told


def begin_from(network: SHMoAReg, weights: str) -> None:
    """Take over the weights of another network of the same config, whatever size and passes it is
    meant for.

    Raises
    ------
    InputError
        If there are no such weights, or they are of a network with another config.
    """
    from napari_shmoareg.io import load_network
    from napari_shmoareg.training.expert_training import with_choice_bias

    found, ours = load_network(weights), network.config
    found = with_choice_bias(found) if ours.choice_bias else found
    names = (field.name for field in fields(ours) if field.name not in FREE)
    pairs = [(name, getattr(found.config, name), getattr(ours, name)) for name in names]
    other = [
        f"{name} {theirs} instead of {wanted}" for name, theirs, wanted in pairs if theirs != wanted
    ]
    if other:
        raise InputError(
            f"The weights '{weights}' are of another network than the recipe's: {', '.join(other)}."
            " Give others to --from, or the recipe that they were learned with."
        )
    network.load_state_dict(found.state_dict())


def running_mean(network: SHMoAReg, plan: Recipe, run: Path, start: int) -> RunningMean:
    """The mean of the weights as the run left it; begun anew where the weights are not of the
    state's step.

    Weights and state are two files: a run that was killed between the two leaves weights that are
    ahead."""
    from napari_shmoareg.io import load_network, read_card
    from napari_shmoareg.training.recipes import RunningMean

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
            f"Note: the state in {run} is of step {start}, but its weights {found}; the running"
            " mean of the weights begins anew from the state's network."
        )
    return mean


def write_weights(
    network: SHMoAReg,
    plan: Recipe,
    history: list[dict[str, Any]],
    run: Path,
    steps: int,
    weights: str | None = None,
    *,
    maps: bool = True,
) -> None:
    """The weights so far, with a card, and the log as a table."""
    from napari_shmoareg.io import save_network
    from napari_shmoareg.io.files import write_table
    from napari_shmoareg.registration.resources import choose_bfloat16

    nothing_else = "; no scan of a person was seen"
    kinds = ["label maps"] * maps + ["drawn torsos"] * (plan.drawing.torso > 0) + ["random shapes"]
    card = {
        "name": run.name,
        "drawn_from": (
            f"{', '.join(kinds[:-1])} and {kinds[-1]}"
            + (nothing_else if weights is None else f", after '{weights}'")
        ),
        "from": weights,
        "recipe": asdict(plan),
        "in_bfloat16": choose_bfloat16(plan.settings.bfloat16, next(network.parameters()).device)[
            0
        ],
        "steps": steps,
        "minutes": round(sum(row["minutes"] for row in history), 1),
    }
    save_network(network, run / WEIGHTS, card=card)
    columns = sorted({key for row in history for key in row}, key=lambda key: (key != "step", key))
    write_table([{key: row.get(key, "") for key in columns} for row in history], run / "log.csv")


SAVE_EVERY, VALIDATE_EVERY = 100, 400
SHEET_PAIRS = 12
# one drawn pair a step, on grids of the recipe, for a network of its preset
FIXED = ("batch", "passes", "size")


@partial(with_settings, settings=((FineTuning, STEP),), without=FIXED, default="the recipe's")
def pretrain(
    run: Annotated[
        Path,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Folder of the run: state, log, weights. Goes on where it is.",
        ),
    ],
    maps: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MAPS]",
            help="Folder of label maps to draw pairs from. May be left out with --torso.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="small (for a CPU), large (for a GPU) or tiny.")
    ] = "small",
    weights: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="WEIGHTS",
            help="Begin with these: a name (see info) or a file.",
            show_default="random",
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            metavar="NAME=VALUE",
            help="A part of the network that is not the recipe's, as for fine-tune; repeatable.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Steps in all.", show_default="the recipe's"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Stop after so long; the same command goes on later."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Decides weights and pairs.", show_default="1")
    ] = None,
    torso: Annotated[
        float | None,
        typer.Option(
            "--torso",
            metavar="SHARE",
            help=(
                "Share of pairs, 0 to 1, that show torsos as CT does: drawn people, which need no"
                " label map."
            ),
            show_default="the recipe's",
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            metavar="FILE.png",
            help="Draw the first training pairs as a picture to look at; learn nothing.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Learn weights from images that are drawn, not scanned.

    Each step draws a pair of images from label maps, random shapes and, with --torso, torsos, and
    learns from both orders of it.  A quarter of the label maps is held out for the validation
    figures in the log; torsos are validated on people of their own.  Ctrl-C and --minutes keep the
    state: the same command goes on with the same pairs.  Look at some of them first, with --sheet:
    that writes nothing to --run."""
    import torch

    from napari_shmoareg.io.files import check_name
    from napari_shmoareg.io.work_folder import make_folder
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.resources import choose_bfloat16
    from napari_shmoareg.training.checkpoint import load_training_state
    from napari_shmoareg.training.expert_training import check_start, start_experts
    from napari_shmoareg.training.plan import parse_changes
    from napari_shmoareg.training.recipes import recipe as named
    from napari_shmoareg.training.step import make_optimiser

    plan = named(
        recipe,
        torso=torso,
        config=parse_changes(config or []),
        steps=steps,
        seed=seed,
        **settings_in(given, FineTuning),
    )
    network_config = plan.network_config()
    if weights is not None:
        check_start(plan.settings)
    if maps is None and not plan.drawing.torso:
        raise InputError(
            "There is nothing to draw but random shapes: give MAPS, a folder of label maps, or"
            " --torso 0.5 to draw torsos too, which need none."
        )
    place = chosen_device(device)
    if sheet is not None:
        draw_sheet(maps, plan, sheet, place, quiet)
        return
    check_name(run)
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file; --run takes a new folder, or the folder of a run.")
    make_folder(run)
    plan = as_begun(run, plan, weights, bfloat16_given=given.get("bfloat16") is not None)
    torch.manual_seed(plan.settings.seed)
    network = SHMoAReg(network_config).to(place)
    start_experts(network, plan.settings)
    optimiser = make_optimiser(network, plan.settings)
    start, history = 0, list[dict[str, Any]]()
    if (run / "training.safetensors").exists():
        start, history = load_training_state(run, network, optimiser)
    elif weights is not None:
        begin_from(network, weights)
    write_plan(run, plan, weights)
    subjects = _subjects(maps)
    if not quiet:
        used, why = choose_bfloat16(plan.settings.bfloat16, place)
        typer.echo(f"Computing in {'bfloat16' if used else 'float32'}: {why}.")
    finished = learn(
        network, optimiser, plan, subjects, run, (start, history), minutes, quiet, weights
    )
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
    weights: str | None = None,
) -> bool:
    """Run steps until the last one, Ctrl-C or the time; whether the last one was reached.

    What the run began from, `weights`, is told in the card of those it writes.
    """
    from napari_shmoareg.cli.console import asked_to_stop
    from napari_shmoareg.training.checkpoint import save_training_state
    from napari_shmoareg.training.recipes import torso_validation_pairs, validation_pairs
    from napari_shmoareg.training.step import fine_tune

    (start, history), size = before, network.config.size
    held = {"validation": validation_pairs(subjects, plan.drawing, size=size)} if subjects else {}
    if plan.drawing.torso:
        held["torso"] = torso_validation_pairs(plan.drawing, size=size)
    began, recent = time.perf_counter(), list[Any]()
    last, mean = start, running_mean(network, plan, run, start)
    pairs = plan.pairs(subjects, next(network.parameters()).device)
    with asked_to_stop() as asked, progress(quiet) as report:
        for step in fine_tune(network, pairs, plan.settings, optimiser=optimiser, start=start):
            last = step.step
            mean.follow(network)
            recent.append(step)
            report(f"pretraining, loss {step.total:.3f}", step.step / plan.settings.steps)
            late = minutes is not None and time.perf_counter() - began > 60 * minutes
            end = bool(asked) or late or step.step == plan.settings.steps
            if end or step.step % SAVE_EVERY == 0:
                history.append(
                    _row(
                        recent, mean.network, held if end or step.step % VALIDATE_EVERY == 0 else {}
                    )
                )
                recent = []
                write_weights(mean.network, plan, history, run, last, weights, maps=bool(subjects))
                save_training_state(run, network, optimiser, step.step, history)
            if end:
                break
    return last >= plan.settings.steps


def _subjects(maps: Path | None) -> Sequence[Any]:
    """Those of a folder; none where there is no folder."""
    from napari_shmoareg.training.synthesis import read_subjects

    return [] if maps is None else read_subjects(maps)


def draw_sheet(maps: Path | None, plan: Recipe, sheet: Path, device: str, quiet: bool) -> None:
    """The first training pairs of a recipe as a picture.

    Raises
    ------
    InputError
        If it cannot be written there, or a file of that name exists.
    """
    from napari_shmoareg.figures.registration import contact_sheet
    from napari_shmoareg.io.files import check_new_file, write_figure, writing

    if sheet.suffix.lower() != ".png":
        raise InputError(f"The sheet is written as PNG: the name '{sheet}' has to end in .png.")
    check_new_file(sheet, overwrite=True)
    if sheet.exists():
        raise InputError(f"{sheet} exists and is not overwritten; give --sheet another name.")
    pairs = plan.pairs(_subjects(maps), device)
    with progress(quiet) as report:
        drawn = []
        for number in range(SHEET_PAIRS):
            report(f"drawing pair {number + 1}", number / SHEET_PAIRS)
            drawn.append(pairs[number])
        report("drawing the sheet", 1.0)
        figure = contact_sheet(drawn)
        about = {"Title": "drawn pairs", "Recipe": f"{plan.preset}, seed {plan.settings.seed}"}
        with writing(sheet) as temporary:
            write_figure(figure, temporary, about)
    if not quiet:
        typer.echo(f"Wrote {sheet}")


def _row(
    steps: Sequence[Step], network: SHMoAReg, held: Mapping[str, Sequence[Conformed]]
) -> dict[str, Any]:
    """Means of some steps, and validations of some kinds of pairs; the overlap is that of the steps
    that had one.
    """
    from napari_shmoareg.training.recipes import validate

    names = ("total", "similarity", "smoothness", "routing", "overlap", "rate", "seconds")
    found: dict[str, Any] = {"step": steps[-1].step}
    found["minutes"] = sum(step.seconds for step in steps) / 60
    rows = [{name: getattr(step, name) for name in names} | step.further for step in steps]
    for name in rows[0]:
        if values := [value for row in rows if (value := row[name]) == value]:
            found[name] = sum(values) / len(values)
    for kind, pairs in held.items():
        found |= {
            f"{kind}_{key}": value for key, value in validate(network, pairs)._asdict().items()
        }
    return found
