"""The folder of a pretraining run: how it began, how it goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_shmoareg.cli.errors import say
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.untrusted import read_object

if TYPE_CHECKING:
    from napari_shmoareg.engine.pretraining import Recipe, RunningMean
    from napari_shmoareg.model import SHMoAReg

WEIGHTS, PLAN = "weights.safetensors", "recipe.json"
FREE = {"size", "passes", "diffeomorphic"}  # of a config: how the weights are used, not what they are


def make_folder(run: Path) -> None:
    """The run's folder, made if missing.

    Raises
    ------
    InputError
        If it is a file, or cannot be made.
    """
    from napari_shmoareg.io.places import check_name

    check_name(run)
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file; the name of a new folder, or of a run's folder, was expected for --run.")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot make the folder {run}: {error.strerror}. Name a place that you may write to."
        ) from error


def as_begun(run: Path, plan: Recipe, weights: str | None = None, *, bfloat16_given: bool = False) -> Recipe:
    """The plan of a run: it goes on with the settings, and from the weights, that it began with.

    Parameters
    ----------
    run : Path
    plan : Recipe
    weights : str, optional
    bfloat16_given : bool
        Otherwise the run goes on with its own choice: runs from before there was "auto" chose for themselves.

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
            f"{told} is damaged ({error}): it tells which settings the run was begun with. Delete it to go on with "
            "the settings given now, or give another --run."
        ) from error
    if not bfloat16_given:
        plan = replace(plan, settings=replace(plan.settings, bfloat16=then["settings"]["bfloat16"]))
    if then != _told(plan, weights):
        raise InputError(
            f"The run in '{run}' was begun with other settings (see {told}); give those, or another --run."
        )
    return plan


def _completed(then: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with the defaults of those that its version did not have.

    Raises
    ------
    ValueError, TypeError
        If they are damaged.
    """
    from napari_shmoareg.engine.drawing import Drawing
    from napari_shmoareg.engine.training_settings import FineTuning, upgraded

    parts = {name: then.get(name, {}) for name in ("settings", "drawing")}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError("names and values were expected in settings and drawing")
    settings = FineTuning().to_dict() | upgraded(parts["settings"])
    if settings["bfloat16"] not in ("auto", "on", "off"):
        raise ValueError(f"bfloat16 is {settings['bfloat16']!r:.80}")
    drawing = json.loads(json.dumps(asdict(Drawing()))) | parts["drawing"]
    return (
        {"from": None} | then | {"settings": settings, "drawing": drawing}
    )  # older runs all began from random weights


def write_plan(run: Path, plan: Recipe, weights: str | None = None) -> None:
    """Note what a run is begun with, if that was not done."""
    from napari_shmoareg.io.atomic import writing

    if not (run / PLAN).exists():
        with writing(run / PLAN) as temporary:
            temporary.write_text(json.dumps(_told(plan, weights), indent=2) + "\n", encoding="utf-8")


def _told(plan: Recipe, weights: str | None) -> dict[str, Any]:
    """What decides a run, as it comes back from JSON."""
    told: dict[str, Any] = json.loads(json.dumps({**asdict(plan), "from": weights}))
    return told


def begin_from(network: SHMoAReg, weights: str) -> None:
    """Take over the weights of another network of the same config, whatever size and passes it is meant for.

    Raises
    ------
    InputError
        If there are no such weights, or they are of a network with another config.
    """
    from napari_shmoareg.engine.expert_training import with_choice_bias
    from napari_shmoareg.io.checkpoint import load_network

    found, ours = load_network(weights), network.config
    found = with_choice_bias(found) if ours.choice_bias else found
    names = (field.name for field in fields(ours) if field.name not in FREE)
    pairs = [(name, getattr(found.config, name), getattr(ours, name)) for name in names]
    other = [f"{name} {theirs} instead of {wanted}" for name, theirs, wanted in pairs if theirs != wanted]
    if other:
        raise InputError(
            f"The weights '{weights}' are of another network than the recipe's: {', '.join(other)}. Give others to "
            "--from, or the recipe that they were learned with."
        )
    network.load_state_dict(found.state_dict())


def running_mean(network: SHMoAReg, plan: Recipe, run: Path, start: int) -> RunningMean:
    """The mean of the weights as the run left it; begun anew where the weights are not of the state's step.

    Weights and state are two files: a run that was killed between the two leaves weights that are ahead.
    """
    from napari_shmoareg.engine.pretraining import RunningMean
    from napari_shmoareg.io.checkpoint import load_network
    from napari_shmoareg.io.model_card import read_card

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
    from napari_shmoareg.engine.device import choose_bfloat16
    from napari_shmoareg.io.checkpoint import save_network
    from napari_shmoareg.io.tables import write_table

    nothing_else = "; no scan of a person was seen"
    kinds = ["label maps"] * maps + ["drawn torsos"] * (plan.drawing.torso > 0) + ["random shapes"]
    card = {
        "name": run.name,
        "drawn_from": f"{', '.join(kinds[:-1])} and {kinds[-1]}"
        + (nothing_else if weights is None else f", after '{weights}'"),
        "from": weights,
        "recipe": asdict(plan),
        "in_bfloat16": choose_bfloat16(plan.settings.bfloat16, next(network.parameters()).device)[0],
        "steps": steps,
        "minutes": round(sum(row["minutes"] for row in history), 1),
    }
    save_network(network, run / WEIGHTS, card=card)
    columns = sorted({key for row in history for key in row}, key=lambda key: (key != "step", key))
    write_table([{key: row.get(key, "") for key in columns} for row in history], run / "log.csv")
