"""``shmoareg pretrain``: weights from drawn pairs alone, in runs that can be cut into pieces."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.errors import CANCELLED, say
from napari_shmoareg.cli.fine_tune.options import STEP, chosen, with_settings
from napari_shmoareg.cli.options import Bfloat16, Debug, Device, DeviceOption, Quiet
from napari_shmoareg.cli.progress import progress
from napari_shmoareg.cli.runs import as_begun, begin_from, make_folder, running_mean, write_plan, write_weights
from napari_shmoareg.engine.training_settings import FineTuning
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.weights import chosen_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_shmoareg.engine.conform import Conformed
    from napari_shmoareg.engine.fine_tuning import Step
    from napari_shmoareg.engine.pretraining import Recipe
    from napari_shmoareg.model import SHMoAReg

SAVE_EVERY, VALIDATE_EVERY = 100, 400
SHEET_PAIRS = 12
FIXED = ("batch", "passes", "size")  # one drawn pair a step, on grids of the recipe, for a network of its preset


@partial(with_settings, settings=((FineTuning, STEP),), without=FIXED, default="the recipe's")
def pretrain(
    run: Annotated[
        Path, typer.Option("--run", metavar="DIR", help="Folder of the run: state, log, weights. Goes on where it is.")
    ],
    maps: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MAPS]",
            help="Folder of label maps to draw pairs from. May be left out with --torso.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="small (for a CPU), large (for a GPU) or tiny.")] = "small",
    weights: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="WEIGHTS", help="Begin with these: a name (see info) or a file.", show_default="random"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps in all.", show_default="the recipe's")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Stop after so long; the same command goes on later.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides weights and pairs.", show_default="1")] = None,
    torso: Annotated[
        float | None,
        typer.Option(
            "--torso",
            metavar="SHARE",
            help="Share of pairs, 0 to 1, that show torsos as CT does: drawn people, which need no label map.",
            show_default="the recipe's",
        ),
    ] = None,
    bfloat16: Annotated[
        Bfloat16 | None,
        typer.Option(
            "--bfloat16",
            help="Convolutions and products in bfloat16; auto: where the device is fast at it.",
            show_default="auto",
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet", metavar="FILE.png", help="Draw the first training pairs as a picture to look at; learn nothing."
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Learn weights from images that are drawn, not scanned.

    Each step draws a pair of images from label maps, random shapes and, with --torso, torsos, and learns from both
    orders of it.  A quarter of the label maps is held out for the validation figures in the log; torsos are validated
    on people of their own.  Ctrl-C and --minutes keep the state: the same command goes on with the same pairs.  Look
    at some of them first, with --sheet: that writes nothing to --run.
    """
    import torch

    from napari_shmoareg.engine.device import choose_bfloat16
    from napari_shmoareg.engine.expert_training import check_start, expert_config, start_experts
    from napari_shmoareg.engine.fine_tuning import make_optimiser
    from napari_shmoareg.engine.pretraining import recipe as named
    from napari_shmoareg.io.training_state import load_training_state
    from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

    precision = None if bfloat16 is None else bfloat16.value
    plan = named(recipe, torso=torso, steps=steps, seed=seed, bfloat16=precision, **chosen(given)[0])
    if weights is not None:
        check_start(plan.settings)
    if maps is None and not plan.drawing.torso:
        raise InputError(
            "There is nothing to draw but random shapes: give MAPS, a folder of label maps, or --torso 0.5 to draw "
            "torsos too, which need none."
        )
    place = chosen_device(device.value)
    if sheet is not None:
        draw_sheet(maps, plan, sheet, place, quiet)
        return
    make_folder(run)
    plan = as_begun(run, plan, weights, bfloat16_given=bfloat16 is not None)
    torch.manual_seed(plan.settings.seed)
    network = SHMoAReg(expert_config(SHMoARegConfig.preset(plan.preset), plan.settings)).to(place)
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
    finished = learn(network, optimiser, plan, subjects, run, (start, history), minutes, quiet, weights)
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
    from napari_shmoareg.cli.stopping import asked_to_stop
    from napari_shmoareg.engine.fine_tuning import fine_tune
    from napari_shmoareg.engine.pretraining import torso_validation_pairs, validation_pairs
    from napari_shmoareg.io.training_state import save_training_state

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
                history.append(_row(recent, mean.network, held if end or step.step % VALIDATE_EVERY == 0 else {}))
                recent = []
                write_weights(mean.network, plan, history, run, last, weights, maps=bool(subjects))
                save_training_state(run, network, optimiser, step.step, history)
            if end:
                break
    return last >= plan.settings.steps


def _subjects(maps: Path | None) -> Sequence[Any]:
    """Those of a folder; none where there is no folder."""
    from napari_shmoareg.io.label_maps import read_subjects

    return [] if maps is None else read_subjects(maps)


def draw_sheet(maps: Path | None, plan: Recipe, sheet: Path, device: str, quiet: bool) -> None:
    """The first training pairs of a recipe as a picture.

    Raises
    ------
    InputError
        If it cannot be written there, or a file of that name exists.
    """
    from napari_shmoareg.analysis.sheet import contact_sheet
    from napari_shmoareg.io.atomic import writing
    from napari_shmoareg.io.figure_files import write_figure
    from napari_shmoareg.io.places import check_new_file

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


def _row(steps: Sequence[Step], network: SHMoAReg, held: Mapping[str, Sequence[Conformed]]) -> dict[str, Any]:
    """Means of some steps, and validations of some kinds of pairs; the overlap is that of the steps that had one."""
    from napari_shmoareg.engine.pretraining import validate

    names = ("total", "similarity", "smoothness", "routing", "overlap", "rate", "seconds")
    row: dict[str, Any] = {"step": steps[-1].step}
    row["minutes"] = sum(step.seconds for step in steps) / 60
    for name in names:
        if values := [value for step in steps if (value := getattr(step, name)) == value]:
            row[name] = sum(values) / len(values)
    for kind, pairs in held.items():
        row |= {f"{kind}_{key}": value for key, value in validate(network, pairs)._asdict().items()}
    return row
