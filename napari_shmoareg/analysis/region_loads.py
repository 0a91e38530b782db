"""How often each expert is chosen in a region of the body.

Fig. 6 over regions instead of places.  A load is a share of selections: it does not say how much
an expert contributed, nor that it was chosen well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.analysis.expert_load import Place
from napari_shmoareg.analysis.expert_maps import ExpertMap, TokenLoad
from napari_shmoareg.analysis.region_sample import RegionSample, cell_volumes
from napari_shmoareg.analysis.scene import Scene
from napari_shmoareg.analysis.space_blocks import Blocks
from napari_shmoareg.geometry import Grid, InputError, Volume
from napari_shmoareg.geometry.resample import resample

TOGETHER: Literal["regions"] = "regions"
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RegionLoad:
    """The load of one gate in one region.

    Attributes
    ----------
    place : Place
        Where in the network the gate stands.
    region : int
        The label.
    name : str
        Of the region, for people.
    share : (N,) array
        Of the selections made in the region; sums to 1.
    low, high : (N,) array or None
        Ends of the 95 % interval of each share, by resampling blocks of space; None where the region
        lies in fewer than 5 blocks, or has fewer than 5 tokens.
    tokens : float
        Cells behind the figures; a cell counts by the share of its volume that lies in the region.
    blocks : int
        Blocks of space that hold any of it; parts that only a wall between blocks divides are one.
    distance : float
        Total variation distance, 0 to 1, between the share and that of the reference: half the sum of
        the absolute differences.
    expected : float or None
        95th percentile of that distance for regions as large, in as many blocks, drawn at random from
        the reference: a distance below it is what chance gives.  Where the reference is a region, it
        is drawn again too.  None where the reference lies in fewer than 5 blocks.
    """

    place: Place
    region: int
    name: str
    share: Floats
    low: Floats | None
    high: Floats | None
    tokens: float
    blocks: int
    distance: float
    expected: float | None


def region_loads(
    scene: Scene,
    labels: Volume,
    *,
    names: Mapping[int, str] | None = None,
    reference: int | Literal["regions"] | None = None,
    block_mm: float = 24.0,
    draws: int = 400,
    seed: int = 0,
    **where: object,
) -> list[RegionLoad]:
    """Loads per gate and region, with how sure they are.

    Neighbouring cells choose alike, so the sample is blocks of space, not voxels: the interval comes
    from drawing the region's blocks with replacement, the distance that chance gives from drawing
    pieces of as many blocks from the reference.  Both speak of this pair alone, not of other bodies,
    and trust that cells a block apart choose by themselves.  95 % is meant; of balls of 8 to 35 mm in
    noise that is smooth over up to half a block, 86 to 95 % of the intervals held the truth, and 87 %
    or more of the distances stayed below `expected` (60 images each).  Nothing corrects for looking at
    many regions and gates at once: one in twenty lies above by chance.

    Parameters
    ----------
    scene : Scene
    labels : Volume
        Regions in the world of the fixed image, on any grid; 0 is outside.  They are put on the network
        grid once, by nearest neighbour; what lies outside of it is not counted, nor is padding.
    names : mapping of int to str, optional
        Of the labels; "label 3" where there is none.
    reference : int, "regions" or None
        The label to measure distances from; "regions" is all of them together, which leaves air out; None is the
        whole image, in which every cell counts.
    block_mm : float
        Edge of a block; rounded to whole cells of each gate, at least one.
    draws : int
        How often to resample.
    seed : int
    **where
        Only gates whose place has these fields: ``region_loads(scene, labels, part="decoder", layer=1)``.

    Returns
    -------
    list of RegionLoad
        Gate by gate (encoder, then decoder), regions by label; those that no middle of a voxel of the network grid
        lies in are left out.

    Raises
    ------
    InputError
        If these are no labels, none of them (or not the reference) lies on the network grid, or a
        number is out of its range.
    """
    if not (np.isfinite(block_mm) and block_mm > 0) or draws < 1:
        raise InputError(f"block_mm and draws are numbers above 0; got {block_mm} and {draws}.")
    if unknown := set(where) - set(Place._fields):
        raise InputError(f"A gate has no {', '.join(sorted(unknown))}; its fields are {', '.join(Place._fields)}.")
    ids, regions = _on_network(labels, scene.network_grid)
    if reference not in (None, TOGETHER) and reference not in ids:
        raise InputError(f"The reference {reference} is none of the regions in the network's field of view: {ids}.")
    names = names or {}
    named = [(label, names.get(label, f"label {label}")) for label in ids]
    whose = reference if reference in (None, TOGETHER) else ids.index(index(reference))  # type: ignore[arg-type]
    samples: dict[int, RegionSample] = {}
    loads = []
    sources: list[TokenLoad | ExpertMap] = [*scene.token_loads, *scene.expert_maps]
    for source in sources:
        if all(getattr(source.place, key) == value for key, value in where.items()):
            if source.stride not in samples:
                volumes = cell_volumes(scene.network_grid, source.stride, regions, len(ids))
                blocks = Blocks.cut(scene.network_grid.coarsen(source.stride), block_mm)
                samples[source.stride] = RegionSample(volumes, blocks, whose, draws, seed)
            loads += _loads(source, samples[source.stride], named)
    return loads


def _loads(source: TokenLoad | ExpertMap, sample: RegionSample, named: list[tuple[int, str]]) -> list[RegionLoad]:
    """Of one gate, region by region."""
    found = sample.figures(source)
    return [
        RegionLoad(
            place=source.place,
            region=label,
            name=name,
            share=found.share[r],
            low=found.low[r] if sample.enough[r] else None,
            high=found.high[r] if sample.enough[r] else None,
            tokens=float(sample.tokens[r]),
            blocks=int(sample.blocks[r]),
            distance=float(found.distance[r]),
            expected=float(found.expected[r]) if sample.reference_enough else None,
        )
        for r, (label, name) in enumerate(named)
    ]


def _on_network(labels: Volume, grid: Grid) -> tuple[list[int], NDArray[np.int64]]:
    """The labels that are found on the network grid, and which of them each voxel (I * J * K,) has; -1 is none."""
    if not labels.is_labels:
        raise InputError(f"'{labels.name}' is an image; regions are a label map (a Volume with is_labels=True).")
    carried = resample(labels, grid)
    ids = carried.labels
    if not ids:
        voxels = np.argwhere(labels.values != 0)
        index = np.rint(grid.to_index(labels.grid.to_world(voxels)))
        if ((index >= 0) & (index < grid.shape)).all(axis=-1).any():
            raise InputError(
                f"The regions of '{labels.name}' are smaller than the voxels of the network grid "
                f"({max(grid.spacing):.2f} mm) and fall between their middles. Draw a larger region."
            )
        raise InputError(
            f"No region of '{labels.name}' lies in the network's field of view. Give labels of the fixed image."
        )
    values = carried.values.ravel()
    found = np.searchsorted(ids, values).clip(max=len(ids) - 1)
    return ids, np.where(values != 0, found, -1)
