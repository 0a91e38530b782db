"""How much depends on each expert: all of them silenced, one after the other.  Ours, beyond the paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from napari_shmoareg.analysis.experiment import Experiment
from napari_shmoareg.analysis.intervention import Intervention
from napari_shmoareg.geometry import InputError, Volume
from napari_shmoareg.model.gates import gates_of


@dataclass(frozen=True)
class ImportanceRow:
    """What one change did; ``null_`` is what the same change did for experts drawn at random.

    Attributes
    ----------
    number, total : int
        Which row of how many.
    action : {"silence", "force"}
    region : str
        Name of the region; empty for everywhere.
    seed : int
        Of the random counterpart.
    part, layer, direction : as in `RoutedLayer`
        All blocks of a layer are changed together.
    expert : int
    share : float
        Of the selections of these gates, 0 to 1.
    changed : float
        Share of the cells whose choice the change turned, 0 to 1.
    mean_mm, p95_mm : float
        How far the displacement moved, over the content of the fixed image.
    mean_dice_change : float or None
        None without labels.
    folding_change : float
        Percentage points.
    null_mm, null_dice_change : float or None
        Of `Experiment.null`; None where it was not asked for.
    """

    number: int
    total: int
    action: str
    region: str
    seed: int
    part: Literal["encoder", "decoder"]
    layer: int
    direction: str | None
    expert: int
    share: float
    changed: float
    mean_mm: float
    p95_mm: float
    mean_dice_change: float | None
    folding_change: float
    null_mm: float | None = None
    null_dice_change: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a table: without number and total."""
        return {key: value for key, value in asdict(self).items() if key not in ("number", "total")}


def importance(
    experiment: Experiment,
    *,
    action: Literal["silence", "force"] = "silence",
    part: str | None = None,
    layer: int | None = None,
    direction: str | None = None,
    region: Volume | None = None,
    null: bool = True,
    seed: int = 0,
) -> Iterator[ImportanceRow]:
    """Change every expert in turn; one row per `next`, each of some seconds.  Stopping anywhere is safe.

    Parameters
    ----------
    experiment : Experiment
    action : {"silence", "force"}
    part, layer, direction : optional
        Only these gates; None is all.
    region : Volume, optional
        Only there; see `Intervention`.
    null : bool
        Run the random counterpart beside each: twice the time.
    seed : int
        Of the lot.

    Yields
    ------
    ImportanceRow
        Decoder: per layer and direction; encoder: per layer, over its blocks and both images.

    Raises
    ------
    InputError
        If no gate is meant.
    """
    changes = [
        Intervention(action, expert, *group, region=region)
        for group in _groups(experiment, part, layer, direction)
        for expert in range(_experts(experiment, group))
    ]
    if not changes:
        raise InputError(
            f"This network has no gate with part {part}, layer {layer}, direction {direction}; None stands for all."
        )
    for number, change in enumerate(changes, start=1):
        yield _row(experiment, change, number, len(changes), seed + number if null else None)


Group = tuple[Any, int, None, None, Any]  # part, layer, block, image, direction


def _groups(experiment: Experiment, part: str | None, layer: int | None, direction: str | None) -> list[Group]:
    wanted = {"part": part, "layer": layer, "direction": direction}
    sites = [
        site
        for site in gates_of(experiment.replay.network)
        if all(value in (None, getattr(site, name)) for name, value in wanted.items())
    ]
    return list(dict.fromkeys((site.part, site.layer, None, None, site.direction) for site in sites))


def _experts(experiment: Experiment, group: Group) -> int:
    part, layer, _, _, direction = group
    return next(
        site.num_experts
        for site in gates_of(experiment.replay.network)
        if (site.part, site.layer, site.direction) == (part, layer, direction)
    )


def _row(experiment: Experiment, change: Intervention, number: int, total: int, seed: int | None) -> ImportanceRow:
    """Run a change, and with a seed its random counterpart; nothing of the runs but the figures stays."""
    assert isinstance(change.expert, int) and change.layer is not None
    effect = experiment.run(change)
    row = ImportanceRow(
        number=number,
        total=total,
        action=change.action,
        region="" if change.region is None else change.region.name or "region",
        seed=seed or 0,
        part=change.part,
        layer=change.layer,
        direction=change.direction,
        expert=change.expert,
        share=experiment.share(change),
        changed=effect.changed,
        mean_mm=effect.mean_mm,
        p95_mm=effect.p95_mm,
        mean_dice_change=effect.mean_dice_change,
        folding_change=effect.folding_change,
    )
    if seed is None:
        return row
    del effect
    beside = experiment.run(experiment.null(change, seed=seed))
    return replace(row, null_mm=beside.mean_mm, null_dice_change=beside.mean_dice_change)
