"""``shmoareg pretrain``: train on synthetic pairs, in runs that can be resumed."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields, replace
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
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.model_card import choose_device
from napari_shmoareg.io.untrusted import read_object
from napari_shmoareg.training.settings import FineTuning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.conform import Conformed
    from napari_shmoareg.training.recipes import Recipe, RunningMean
    from napari_shmoareg.training.step import Step


WEIGHTS, PLAN = "weights.safetensors", "recipe.json"
# config fields on how weights are used or trained, not what they are
FREE = {
    "size",
    "passes",
    "diffeomorphic",
    "integration_steps",
    "drop_path",
    "detach_weights",
    "routing_only",
}


def resume_plan(
    run: Path, plan: Recipe, weights: str | None = None, *, bfloat16_given: bool = False
) -> Recipe:
    """Check the plan against that of an existing run, which keeps its settings and initial weights.

    Parameters
    ----------
    run : Path
    plan : Recipe
    weights : str, optional
    bfloat16_given : bool
        If not, the run keeps its own value; runs of versions without "auto" have one too.

    Raises
    ------
    InputError
        If they differ, or recipe.json is damaged.
    """
    path = run / PLAN
    if not path.exists():
        return plan
    try:
        then = _with_defaults(read_object(path, "the settings of a run"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}): it holds the settings of the run. Delete it to"
            " continue with the given settings, or give another --run."
        ) from error
    if not bfloat16_given:
        plan = replace(plan, settings=replace(plan.settings, bfloat16=then["settings"]["bfloat16"]))
    if then != _plan_dict(plan, weights):
        raise InputError(
            f"The run in '{run}' was started with other settings (see {path}); give those, or"
            " another --run."
        )
    return plan


def _with_defaults(then: dict[str, Any]) -> dict[str, Any]:
    """Complete the settings of a run with the defaults of settings that its version did not have.

    Raises
    ------
    ValueError, TypeError
        If they are damaged.
    """
    from napari_shmoareg.training.settings import FineTuning, upgraded
    from napari_shmoareg.training.synthesis_settings import SynthesisSettings

    parts = {name: then.get(name, {}) for name in ("settings", "drawing")}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError("settings and drawing must be mappings")
    settings = FineTuning().to_dict() | upgraded(parts["settings"])
    if settings["bfloat16"] not in ("auto", "on", "off"):
        raise ValueError(f"bfloat16 is {settings['bfloat16']!r:.80}")
    drawing = json.loads(json.dumps(asdict(SynthesisSettings()))) | parts["drawing"]
    return (
        {"from": None, "config": {}} | then | {"settings": settings, "drawing": drawing}
    )  # older runs all started from random weights of a preset


def write_plan(run: Path, plan: Recipe, weights: str | None = None) -> None:
    """Write the plan of a new run."""
    from napari_shmoareg.io.files import atomic_write

    if not (run / PLAN).exists():
        with atomic_write(run / PLAN) as temporary:
            temporary.write_text(
                json.dumps(_plan_dict(plan, weights), indent=2) + "\n", encoding="utf-8"
            )


def _plan_dict(plan: Recipe, weights: str | None) -> dict[str, Any]:
    """The plan as a dict, with JSON types."""
    values: dict[str, Any] = json.loads(json.dumps({**asdict(plan), "from": weights}))
    return values


def load_start_weights(network: SHMoAReg, weights: str) -> None:
    """Load weights of a network with the same config, except for size and passes.

    Raises
    ------
    InputError
        If there are no such weights, or their network has another config.
    """
    from napari_shmoareg.io import load_network
    from napari_shmoareg.training.expert_training import with_choice_bias

    found, config = load_network(weights), network.config
    found = with_choice_bias(found) if config.choice_bias else found
    names = (field.name for field in fields(config) if field.name not in FREE)
    pairs = [(name, getattr(found.config, name), getattr(config, name)) for name in names]
    other = [f"{name} {theirs} instead of {own}" for name, theirs, own in pairs if theirs != own]
    if other:
        raise InputError(
            f"The weights '{weights}' are of a different network than that of the recipe:"
            f" {', '.join(other)}. Give other weights to --from, or the recipe that they were"
            " trained with."
        )
    network.load_state_dict(found.state_dict())


def running_mean(network: SHMoAReg, plan: Recipe, run: Path, start: int) -> RunningMean:
    """Restore the running mean of the weights; restart it if the weights are not from the step of
    the state.

    Weights and state are two files: a run killed between the two leaves weights that are ahead.
    """
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
        state = "are missing" if step is None else f"are from step {step}"
        print_note(
            f"Note: the state in {run} is from step {start}, but its weights {state}; the"
            " running mean of the weights restarts from the state."
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
    """Write the current weights with their card, and the log."""
    from napari_shmoareg.io import save_network
    from napari_shmoareg.io.files import write_table
    from napari_shmoareg.registration.resources import choose_bfloat16

    nothing_else = "; no scan of a person was used"
    kinds = (
        ["label maps"] * maps + ["synthetic torsos"] * (plan.drawing.torso > 0) + ["random shapes"]
    )
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
# one synthetic pair per step, on grids of the recipe, for a network of its preset
FIXED = ("batch", "passes", "size")


@partial(with_settings, settings=((FineTuning, STEP),), without=FIXED, default="the recipe's")
def pretrain(
    run: Annotated[
        Path,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Folder of the run: state, log, weights. An existing run is continued.",
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
    and trains on both orders of it. A quarter of the label maps is held out for the validation in
    the log; torsos are validated on separate synthetic people. Ctrl-C and --minutes save the state;
    the same command continues with the same pairs. Use --sheet to look at some pairs first; it
    writes nothing to --run.
    """
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
            "There are no pairs but random shapes: give MAPS, a folder of label maps, or --torso"
            " 0.5 for synthetic torsos, which need none."
        )
    run_device = choose_device(device)
    if sheet is not None:
        draw_sheet(maps, plan, sheet, run_device, quiet)
        return
    check_name(run)
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file; --run takes a new folder, or the folder of a run.")
    make_folder(run)
    plan = resume_plan(run, plan, weights, bfloat16_given=given.get("bfloat16") is not None)
    torch.manual_seed(plan.settings.seed)
    network = SHMoAReg(network_config).to(run_device)
    start_experts(network, plan.settings)
    optimiser = make_optimiser(network, plan.settings)
    start, history = 0, list[dict[str, Any]]()
    if (run / "training.safetensors").exists():
        start, history = load_training_state(run, network, optimiser)
    elif weights is not None:
        load_start_weights(network, weights)
    write_plan(run, plan, weights)
    subjects = _subjects(maps)
    if not quiet:
        used, why = choose_bfloat16(plan.settings.bfloat16, run_device)
        typer.echo(f"Computing in {'bfloat16' if used else 'float32'}: {why}.")
    finished = learn(
        network, optimiser, plan, subjects, run, (start, history), minutes, quiet, weights
    )
    if not finished:
        print_note(f"Stopped; the state is in {run}. The same command continues.")
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
    """Train until the last step, Ctrl-C or the time limit; return whether the last step was
    reached.

    The initial weights `weights` are named in the card.
    """
    from napari_shmoareg.cli.console import stop_on_signal
    from napari_shmoareg.training.checkpoint import save_training_state
    from napari_shmoareg.training.recipes import torso_validation_pairs, validation_pairs
    from napari_shmoareg.training.step import fine_tune

    (start, history), size = before, network.config.size
    validation = (
        {"validation": validation_pairs(subjects, plan.drawing, size=size)} if subjects else {}
    )
    if plan.drawing.torso:
        validation["torso"] = torso_validation_pairs(plan.drawing, size=size)
    start_time, recent = time.perf_counter(), list[Any]()
    last, mean = start, running_mean(network, plan, run, start)
    pairs = plan.pairs(subjects, next(network.parameters()).device)
    with stop_on_signal() as signals, progress(quiet) as report:
        for step in fine_tune(network, pairs, plan.settings, optimiser=optimiser, start=start):
            last = step.step
            mean.follow(network)
            recent.append(step)
            report(f"pretraining, loss {step.total:.3f}", step.step / plan.settings.steps)
            late = minutes is not None and time.perf_counter() - start_time > 60 * minutes
            end = bool(signals) or late or step.step == plan.settings.steps
            if end or step.step % SAVE_EVERY == 0:
                history.append(
                    _row(
                        recent,
                        mean.network,
                        validation if end or step.step % VALIDATE_EVERY == 0 else {},
                    )
                )
                recent = []
                write_weights(mean.network, plan, history, run, last, weights, maps=bool(subjects))
                save_training_state(run, network, optimiser, step.step, history)
            if end:
                break
    return last >= plan.settings.steps


def _subjects(maps: Path | None) -> Sequence[Any]:
    """Read the subjects of a folder; none without a folder."""
    from napari_shmoareg.training.synthesis import read_subjects

    return [] if maps is None else read_subjects(maps)


def draw_sheet(maps: Path | None, plan: Recipe, sheet: Path, device: str, quiet: bool) -> None:
    """Write a picture of the first training pairs of a recipe.

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
    pairs = plan.pairs(_subjects(maps), device)
    with progress(quiet) as report:
        sheet_pairs = []
        for number in range(SHEET_PAIRS):
            report(f"generating pair {number + 1}", number / SHEET_PAIRS)
            sheet_pairs.append(pairs[number])
        report("drawing the sheet", 1.0)
        figure = contact_sheet(sheet_pairs)
        about = {"Title": "synthetic pairs", "Recipe": f"{plan.preset}, seed {plan.settings.seed}"}
        with atomic_write(sheet) as temporary:
            write_figure(figure, temporary, about)
    if not quiet:
        typer.echo(f"Wrote {sheet}")


def _row(
    steps: Sequence[Step], network: SHMoAReg, validation: Mapping[str, Sequence[Conformed]]
) -> dict[str, Any]:
    """A log row: means over steps (terms over the steps that have them), and validations."""
    from napari_shmoareg.training.recipes import validate

    names = ("total", "similarity", "smoothness", "routing", "overlap", "rate", "seconds")
    found: dict[str, Any] = {"step": steps[-1].step}
    found["minutes"] = sum(step.seconds for step in steps) / 60
    rows = [{name: getattr(step, name) for name in names} | step.further for step in steps]
    for name in rows[0]:
        if values := [value for row in rows if (value := row[name]) == value]:
            found[name] = sum(values) / len(values)
    for kind, pairs in validation.items():
        found |= {
            f"{kind}_{key}": value for key, value in validate(network, pairs)._asdict().items()
        }
    return found
