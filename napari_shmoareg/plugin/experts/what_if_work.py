"""The computation of the tab What if in a worker thread, and the layers of its effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume
from napari_shmoareg.plugin.controls.tables import origin_of
from napari_shmoareg.plugin.controls.tasks import Report, WeightsError, replay_of
from napari_shmoareg.plugin.experts.gate_picker import describe_gates
from napari_shmoareg.plugin.placement import layer_options, tag
from napari_shmoareg.plugin.registrations import layers_of_registration
from napari_shmoareg.plugin.showing import refill, show_experts, show_head, show_only
from napari_shmoareg.registration.progress import Interrupted, interruptible

if TYPE_CHECKING:
    from pathlib import Path

    from napari import Viewer
    from napari.layers import Image

    from napari_shmoareg.experts.controls import Control
    from napari_shmoareg.experts.experiment import Effect, Experiment, ImportanceRow
    from napari_shmoareg.experts.intervention import Intervention
    from napari_shmoareg.plugin.experts.region_source import Source
    from napari_shmoareg.registration.register import Registration


RegistrationRef = Callable[[], "Registration | None"]  # does not keep it open
ExperimentCache = MutableMapping["Registration", "Experiment"]

# fractions of the progress: network loaded, network run unchanged
LOADING, READY = 0.3, 0.6
CHOOSE_WEIGHTS = "Press 'Choose weights…' and select their .safetensors file."


ACTIONS = {"silence": "silence it: never chosen", "force": "force it: always chosen"}
PAST_TENSE = {"silence": "Silenced", "force": "Forced"}
ALL_REGIONS = 0  # all regions together


@dataclass(frozen=True, eq=False)
class ChangeRequest:
    """The request of the form, which becomes an `Intervention` or `Control` in any thread.

    Attributes
    ----------
    action : str
        "silence", "force", or the name of a control.
    expert : int or None
        None for a control of several experts.
    where : dict
        Fields of `GateId`; missing fields mean all.
    source : Source or None
        Source of the region; None is everywhere.
    region : int
        Number of the region; 0 is all regions of the source.
    null : bool
        Whether to run the change for random experts too.
    passes : {"all", "last"}
        Passes that a control changes.
    """

    action: Any
    expert: int | None
    where: dict[str, Any]
    source: Source | None
    region: int
    null: bool
    passes: Any = "last"

    @property
    def control(self) -> bool:
        """Whether the action is a control."""
        return self.action not in ACTIONS

    @property
    def within(self) -> str:
        """Description of the region."""
        if self.source is None:
            return "everywhere"
        return (
            f"'{self.source.name}'"
            if self.region == ALL_REGIONS
            else f"region {self.region} of '{self.source.name}'"
        )

    @property
    def sweep_title(self) -> str:
        """Description of a sweep with this request; a sweep covers all blocks and both images."""
        gates = describe_gates(
            {name: self.where.get(name) for name in ("part", "layer", "direction")}
        )
        null = "each with its random counterpart" if self.null else "without random counterparts"
        where = self.within if self.source is None else f"in {self.within}"
        return f"{PAST_TENSE[self.action]} in turn: every expert of {gates}, {where}, {null}"

    def mask(self, registration: Registration) -> Volume | None:
        """The region in the space of the fixed image: nonzero is inside; None for everywhere.

        Raises
        ------
        InputError
            If the region is empty.
        """
        if self.source is None:
            return None
        labels = self.source.volume(registration)
        inside = labels.values != 0 if self.region == ALL_REGIONS else labels.values == self.region
        if not inside.any():
            raise InputError(
                f"There is no voxel in {self.within}. Draw or pick a region inside the fixed image."
            )
        return Volume(inside.astype(np.uint8), labels.grid, self.within, is_labels=True)

    def change(self, registration: Registration) -> Intervention | Control:
        """The control, or the intervention with its region.

        Raises
        ------
        InputError
            If the region is empty.
        """
        from napari_shmoareg.experts.controls import Control
        from napari_shmoareg.experts.intervention import Intervention

        if self.control:
            return Control(self.action, **self.where, passes=self.passes, expert=self.expert)
        assert self.expert is not None
        return Intervention(self.action, self.expert, **self.where, region=self.mask(registration))


@dataclass(frozen=True)
class Figures:
    """The figures of an `Effect`, without its volumes, which would fill the memory."""

    description: str
    dice: Mapping[int, float]
    mean_dice: float | None
    folding_percent: float
    dice_change: Mapping[int, float]
    cells: int
    changed: float
    mean_mm: float
    p95_mm: float
    max_mm: float

    @classmethod
    def of(cls, effect: Effect) -> Figures:
        """The numbers of an effect."""
        outcome = effect.outcome
        same = {
            name: getattr(effect, name)
            for name in ("cells", "changed", "mean_mm", "p95_mm", "max_mm")
        }
        description, whole = (
            str(effect.interventions[0]),
            (outcome.dice, outcome.mean_dice, outcome.folding_percent),
        )
        return cls(description, *whole, effect.dice_change, **same)


@dataclass(frozen=True, eq=False)
class Answer:
    """The effect of one change.

    Attributes
    ----------
    about : dict
        Pair and weights.
    settings : mapping
        Settings of the registration.
    before : tuple
        Dice per label, their mean or None, and folding in percent, without the change.
    effect : Figures
    null : Figures or None
        The same change for random experts.
    share : float or None
        Share of the expert in the selections of these gates in the region; None for a control.
    agreement : float
        As for `recorded_agreement`.
    aligned : float or None
        For a control: mean Dice after the alignment; None without labels.
    """

    about: dict[str, object]
    settings: Mapping[str, Any]
    before: tuple[Mapping[int, float], float | None, float]
    effect: Figures
    null: Figures | None
    share: float | None
    agreement: float
    aligned: float | None = None


@dataclass(eq=False)
class Sweep:
    """The effects of changing every expert; `rows` grow during the run."""

    title: str
    about: dict[str, object]
    agreement: float = 1.0
    rows: list[ImportanceRow] = field(default_factory=list)

    def table(self) -> list[dict[str, object]]:
        """Rows for a file, one per expert."""
        return [{**self.about, **row.to_dict()} for row in self.rows]


def answer(
    report: Report,
    registration_ref: RegistrationRef,
    request: ChangeRequest,
    cache: ExperimentCache,
    weights: str | None = None,
) -> tuple[Answer, Effect]:
    """Run the change, and its random counterpart if requested, without keeping a reference to the
    registration.
    """
    from napari_shmoareg.experts.controls import Control
    from napari_shmoareg.experts.experiment import recorded_agreement

    registration = _open_registration(registration_ref)
    change = request.change(registration)
    start = 0.0 if registration in cache and not weights else READY
    experiment = experiment_of(report, registration, cache, weights)
    about, settings = origin_of(registration), registration.report["settings"]
    same = recorded_agreement(experiment, registration.routing)
    del registration
    step = (1 - start) / (2 if request.null else 1)
    progress = partial(report.part(start, start + step), "running with the change")
    null_progress = partial(report.part(start + step, 1.0), "running with random experts")
    null = share = aligned = None
    with interruptible(experiment.replay.network, report.check):
        effect = experiment.run(change, progress=progress)
        if isinstance(change, Control):
            aligned = experiment.aligned_dice
        else:
            share = experiment.share(change)
            null = (
                Figures.of(experiment.run(experiment.null(change), progress=null_progress))
                if request.null
                else None
            )
    base = experiment.base
    before = base.dice, base.mean_dice, base.folding_percent
    return Answer(about, settings, before, Figures.of(effect), null, share, same, aligned), effect


def sweep(
    report: Report,
    registration_ref: RegistrationRef,
    request: ChangeRequest,
    cache: ExperimentCache,
    found: Sweep,
    weights: str | None = None,
) -> Sweep:
    """Change every expert of some gates in turn, and append each row to `found`."""
    from napari_shmoareg.experts.experiment import importance, recorded_agreement

    registration = _open_registration(registration_ref)
    where = {
        name: value
        for name, value in request.where.items()
        if name in ("part", "layer", "direction")
    }
    region = request.mask(registration)
    experiment = experiment_of(report, registration, cache, weights)
    found.agreement = recorded_agreement(experiment, registration.routing)
    del registration
    with interruptible(experiment.replay.network, report.check):
        report("changing the first expert", 0.0)
        for row in importance(
            experiment, action=request.action, region=region, null=request.null, **where
        ):
            found.rows.append(row)
            report(f"{row.number} of {row.total} experts", row.number / row.total)
    return found


def experiment_of(
    report: Report,
    registration: Registration,
    cache: ExperimentCache,
    weights: str | Path | None = None,
) -> Experiment:
    """The experiment on a registration, created at the first call (seconds); only the last one is
    cached.

    Raises
    ------
    InputError
        If the weights are not found.
    """
    from napari_shmoareg.experts.experiment import Experiment

    found = None if weights else cache.get(registration)
    if found is None:
        cache.clear()  # frees a network and its features
        try:
            replay = replay_of(registration, report.part(0.0, LOADING), weights)
        except WeightsError as error:
            raise InputError(f"{error} {CHOOSE_WEIGHTS}") from error
        with interruptible(replay.network, report.check):
            progress = partial(report.part(LOADING, READY), "running the network unchanged")
            found = cache[registration] = Experiment(replay, progress=progress)
    return found


def _open_registration(registration_ref: RegistrationRef) -> Registration:
    """The registration; raises `Interrupted` if it was closed."""
    registration = registration_ref()
    if registration is None:
        raise Interrupted
    return registration


ROLE = "what_if"
MOVED, DIFFERENCE = "moved", "difference"
NAMES = {MOVED: "what if: moved (mm)", DIFFERENCE: "what if: warped difference"}
LEAST = 0.01  # mm: a lower end of the colours would show rounding errors
BLUE, RED = (0.13, 0.4, 0.85), (0.85, 0.15, 0.1)


def show_effect(
    viewer: Viewer, registration: Registration, number: int, effect: Effect
) -> list[Image]:
    """Show the change of the displacement, and (hidden) the change of the warped image.

    Refills the layers "moved" and "difference" of a previous effect, if they exist.
    """
    top = ramp_end(effect)
    least = float(np.abs(effect.difference.values).max(initial=0)) or 1.0
    strongest = float(np.percentile(np.abs(effect.difference.values), 99.9)) or least
    shown = [
        _fill(viewer, registration, number, MOVED, effect.moved, (0.0, top), moved_colours()),
        _fill(
            viewer,
            registration,
            number,
            DIFFERENCE,
            effect.difference,
            (-strongest, strongest),
            difference_colours(),
        ),
    ]
    for layer in shown:
        layer.metadata["shmoareg"]["effect"] = str(effect.interventions[0])
    show_only(viewer, shown[0])
    return shown


def show_expert_of(
    viewer: Viewer, number: int, registration: Registration, row: ImportanceRow
) -> None:
    """Show the map of the expert that a row of importance is about."""
    if row.part == "decoder":
        layers = registration.routing.select(part="decoder", layer=row.layer)
        show_experts(viewer, number, row.direction, layers[0].stride if layers else None)
        return
    from napari_shmoareg.experts.maps import times_chosen

    counts = [load for load in times_chosen(registration) if load.layer == row.layer]
    load = next((load for load in counts if load.image == "fixed"), counts[0] if counts else None)
    if load is not None:
        show_head(viewer, number, load, row.expert)


def effect_layer(viewer: Viewer, number: int, which: str) -> Image | None:
    """The layer "moved" or "difference" of a registration, or None."""
    found = [
        layer
        for layer in layers_of_registration(viewer, number, ROLE)
        if tag(layer, "which") == which
    ]
    return found[0] if found else None


def ramp_end(effect: Effect) -> float:
    """Upper end of the colours, mm: a round number at or above the 99.5th percentile."""
    reached = max(float(np.percentile(effect.moved.values, 99.5)), effect.max_mm / 4, LEAST)
    power = 10.0 ** np.floor(np.log10(reached))
    return float(
        next(step * power for step in (1, 2, 5, 10) if step * power >= reached * (1 - 1e-9))
    )


def moved_colours() -> dict[str, Any]:
    """Transparent where nothing moved, then violet to yellow."""
    colours = [
        (0.25, 0.0, 0.4, 0.0),
        (0.55, 0.1, 0.6, 0.55),
        (0.95, 0.45, 0.3, 0.8),
        (1.0, 0.95, 0.4, 1.0),
    ]
    return {
        "colors": np.array(colours),
        "controls": np.array([0.0, 0.25, 0.6, 1.0]),
        "name": "moved",
    }


def difference_colours() -> dict[str, Any]:
    """Blue is darker, red brighter with the change; transparent where nothing changed."""
    sides = np.linspace(-1, 1, 17)
    colours = [(*(RED if side > 0 else BLUE), min(1.0, 1.3 * abs(side))) for side in sides]
    return {"colors": np.array(colours), "controls": (sides + 1) / 2, "name": "with minus without"}


def _fill(
    viewer: Viewer,
    registration: Registration,
    number: int,
    which: str,
    volume: Volume,
    limits: tuple[float, float],
    colours: dict[str, Any],
) -> Image:
    data, options = layer_options(
        volume, outside=0.0, registration=registration, number=number, role=ROLE, which=which
    )
    options |= {
        "name": f"#{number} {NAMES[which]}",
        "colormap": colours,
        "contrast_limits": limits,
    }
    layer, values = effect_layer(viewer, number, which), np.asarray(data, dtype=np.float32)
    if layer is None:
        more = {"rendering": "translucent", "opacity": 0.9, "visible": which == MOVED}
        return viewer.add_image(values, **options, **more)
    refill(layer, values, options)
    return layer
