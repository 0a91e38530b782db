"""``shmoareg pretrain``: train on synthetic pairs, in runs that can be resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.console import CANCELLED, print_note, progress
from napari_shmoareg.cli.options import (
    STEP,
    Debug,
    DeviceOption,
    Quiet,
    settings_in,
    with_settings,
)
from napari_shmoareg.cli.train import console_output, weights_path
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.model_card import NO_NETWORK, choose_device
from napari_shmoareg.io.untrusted import read_object, user_path
from napari_shmoareg.training.settings import FineTuning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari_shmoareg.training.plan import Plan
    from napari_shmoareg.training.run_folder import RunFolder


def resume_plan(folder: RunFolder, plan: Plan, *, bfloat16_given: bool) -> Plan:
    """Check the plan of the command against that of an existing run, which keeps its initial
    weights and what a fine-tune command may change; complete the plan of a new run.

    Parameters
    ----------
    folder : RunFolder
    plan : Plan
    bfloat16_given : bool
        If not, the run keeps its own value.

    Raises
    ------
    InputError
        If they differ, run.json is damaged, or the initial weights of a new run do not fit.
    """
    from napari_shmoareg.training.plan import check_start_weights, is_same_path, plan_of, read_plan

    path, earlier = folder.run_json, not folder.run_json.exists()
    if earlier:
        path = folder.path / EARLIER_PLAN
        if not path.exists():
            return check_start_weights(plan)
        then = plan_of(_from_earlier(read_object(path, "the settings of a run"), plan), path)
    else:
        then = read_plan(path)
    if not bfloat16_given:
        plan = replace(plan, settings=replace(plan.settings, bfloat16=then.settings.bfloat16))
    now = replace(plan, run=then.run, versions=then.versions)
    if is_same_path(str(plan.weights["name"]), str(then.weights["name"])):
        now = replace(now, weights=then.weights)
    if plan.dataset.path and then.dataset.path:
        now = replace(now, dataset=replace(now.synthetic, path=then.dataset.path))
    if json.dumps(now.to_dict()) != json.dumps(then.to_dict()):
        raise InputError(
            f"The run in '{folder.path}' was started with other settings (see {path}); give those,"
            " or another --run."
        )
    run = replace(then.run, minutes=plan.run.minutes)
    now = replace(now, dataset=plan.synthetic, run=run)
    return convert_run(folder, now) if earlier else now


# What earlier versions wrote in place of run.json; their log.csv is left as it is.
EARLIER_PLAN = "recipe.json"


def _from_earlier(found: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The content of run.json for that of recipe.json, which has no label maps."""
    from napari_shmoareg.training.plan import FORMAT

    start: dict[str, Any] = {"name": found.get("from") or NO_NETWORK, "sha256": "", "card": {}}
    if not found.get("from"):
        start |= {"preset": found.get("preset"), "changes": found.get("config", {})}
    return plan.to_dict() | {
        "format": FORMAT,
        "dataset": {"path": plan.dataset.path, "options": {"recipe": found}},
        "from": start,
        "settings": found.get("settings"),
    }


def convert_run(folder: RunFolder, plan: Plan) -> Plan:
    """Convert a run of an earlier version: its running mean is in the weights only, and its state
    has a log instead of a position.
    """
    from napari_shmoareg.io import load_network, read_card
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.training.checkpoint import load_training_state, save_training_state
    from napari_shmoareg.training.plan import check_start_weights, write_plan
    from napari_shmoareg.training.run_folder import RunLock
    from napari_shmoareg.training.run_writer import Position
    from napari_shmoareg.training.step import make_optimiser

    if not folder.state.is_file():
        plan = check_start_weights(plan)
    with RunLock(folder.lock):
        network = SHMoAReg(plan.network_config)
        optimiser = make_optimiser(network, plan.settings)
        step, log = 0, list[dict[str, Any]]()
        if folder.state.is_file():
            step, log = load_training_state(folder.path, network, optimiser)
        if log and "minutes" in log[-1]:  # else it is new, or was killed right after this
            weights = folder.pretrained
            of = read_card(weights).get("steps") if weights.is_file() else None
            if of != step:
                state = "are missing" if of is None else f"are from step {of}"
                print_note(
                    f"Note: the state in {folder.path} is from step {step}, but its weights"
                    f" {state}; the running mean of the weights restarts from the state."
                )
            rows = [asdict(Position(step, 60 * sum(row["minutes"] for row in log)))]
            mean = load_network(weights) if of == step else network
            save_training_state(folder.path, network, optimiser, step, rows, mean=mean)
        write_plan(folder.run_json, plan)
    return plan


SHEET_PAIRS = 12
# one synthetic pair per step, on grids of the recipe, for a network of its preset
FIXED = ("batch", "passes", "size")


@partial(with_settings, settings=((FineTuning, STEP),), without=FIXED, default="the recipe's")
def pretrain(
    run: Annotated[
        Path,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Folder of the run: state, tables, weights. An existing run is continued.",
        ),
    ],
    maps: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MAPS]",
            help="Folder of label maps from which pairs are generated. Optional with --torso.",
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
            help="Initial weights: a name (see info) or a file.",
            show_default="random",
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            metavar="NAME=VALUE",
            help="Network setting that differs from the recipe, as for fine-tune; repeatable.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Total number of steps.", show_default="the recipe's"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Time limit in minutes; the same command continues later."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed for weights and pairs.", show_default="1")
    ] = None,
    torso: Annotated[
        float | None,
        typer.Option(
            "--torso",
            metavar="SHARE",
            help=(
                "Share of pairs, 0 to 1, of synthetic torsos in CT contrast, which need no label"
                " map."
            ),
            show_default="the recipe's",
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            metavar="FILE.png",
            help="Write a picture of the first training pairs, without training.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Train weights on synthetic images.

    Each step generates a pair of images from label maps, random shapes and, with --torso, torsos,
    and trains on both orders of it. A quarter of the label maps is held out for validation; torsos
    are validated on separate synthetic people. The result is weights.safetensors, the running mean
    of the weights. Ctrl-C and --minutes save the state; the same command continues with the same
    pairs. Use --sheet to look at some pairs first; it writes nothing to --run.
    """
    from napari_shmoareg.cli.training_process import run_plan
    from napari_shmoareg.io.files import check_name
    from napari_shmoareg.training.plan import make_synthetic_plan, parse_changes
    from napari_shmoareg.training.recipes import recipe as named
    from napari_shmoareg.training.run_folder import RunFolder, saved_seconds

    chosen = named(
        recipe,
        torso=torso,
        config=parse_changes(config or []),
        steps=steps,
        seed=seed,
        **settings_in(given, FineTuning),
    )
    folder, limit = RunFolder(run), 0.0
    if minutes is not None:  # of this command
        limit = saved_seconds(folder) / 60 + max(minutes, 1e-9)
    path = "" if maps is None else str(user_path(maps).absolute())
    start = None if weights is None else weights_path(weights)
    plan = make_synthetic_plan(chosen, path, start, limit)
    if maps is None and not chosen.drawing.torso:
        raise InputError(
            "There are no pairs but random shapes: give MAPS, a folder of label maps, or --torso"
            " 0.5 for synthetic torsos, which need none."
        )
    if sheet is not None:
        draw_sheet(plan, sheet, choose_device(device), quiet)
        return
    check_name(run)
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file; --run takes a new folder, or the folder of a run.")
    plan = resume_plan(folder, plan, bfloat16_given=given.get("bfloat16") is not None)
    with console_output(quiet) as emit:
        resume = folder.run_json.exists()
        reason = run_plan(run, plan, resume, device, with_parent=False, emit=emit)
    if reason != "finished":
        raise typer.Exit(CANCELLED)


def draw_sheet(plan: Plan, sheet: Path, device: str, quiet: bool) -> None:
    """Write a picture of the first training pairs.

    Raises
    ------
    InputError
        If the file cannot be written or exists.
    """
    from napari_shmoareg.figures.registration import contact_sheet
    from napari_shmoareg.io.files import atomic_write, check_new_file, write_figure

    if sheet.suffix.lower() != ".png":
        raise InputError(f"The sheet is written as PNG: the name '{sheet}' has to end in .png.")
    check_new_file(sheet, overwrite=True)
    if sheet.exists():
        raise InputError(f"{sheet} exists and is not overwritten; give --sheet another name.")
    recipe = plan.synthetic.recipe
    pairs = recipe.pairs(plan.synthetic.open(), device)
    with progress(quiet) as report:
        sheet_pairs = []
        for number in range(SHEET_PAIRS):
            report(f"generating pair {number + 1}", number / SHEET_PAIRS)
            sheet_pairs.append(pairs[number])
        report("drawing the sheet", 1.0)
        figure = contact_sheet(sheet_pairs)
        about = {
            "Title": "synthetic pairs",
            "Recipe": f"{recipe.preset}, seed {plan.settings.seed}",
        }
        with atomic_write(sheet) as temporary:
            write_figure(figure, temporary, about)
    if not quiet:
        typer.echo(f"Wrote {sheet}")
