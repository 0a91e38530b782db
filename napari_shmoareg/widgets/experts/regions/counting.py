"""What the Regions view has counted in a worker's thread."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_shmoareg.geometry import Volume
from napari_shmoareg.widgets.experts.regions.selections import selections
from napari_shmoareg.widgets.experts.regions.source import Source
from napari_shmoareg.widgets.experts.regions.where_picker import said_where
from napari_shmoareg.widgets.experts.replaying import Work
from napari_shmoareg.widgets.experts.table_buttons import origin_of

if TYPE_CHECKING:
    from napari_shmoareg.analysis.expert_load import Place
    from napari_shmoareg.analysis.region_loads import RegionLoad
    from napari_shmoareg.analysis.scene import Scene

WHOLE, TOGETHER = "whole", "regions"
REFERENCES: dict[Any, str] = {WHOLE: "whole image, air included", TOGETHER: "all regions together"}


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be counted: the gates, the regions, and what they are compared with."""

    where: dict[str, Any]
    source: Source
    reference: Any  # a label, TOGETHER or WHOLE

    @property
    def key(self) -> tuple[object, ...]:
        """The same for as long as the same is asked."""
        return tuple(sorted(self.where.items())), self.source.key, self.reference


@dataclass(frozen=True, eq=False)
class Regions:
    """What was counted: the loads of some regions, and what they are of."""

    loads: list[RegionLoad]
    labels: Volume
    scene: weakref.ref[Scene]
    names: dict[int, str]
    reference: Any  # a label, TOGETHER or WHOLE
    gates: str
    source: str
    key: tuple[object, ...]  # of what was asked; the layer itself is not held

    @property
    def against(self) -> str:
        """The reference, in words."""
        name = self.names.get(self.reference, self.reference)
        return REFERENCES.get(self.reference, f"region {name}")

    def __str__(self) -> str:
        return f"{self.gates}: {self.source}, against {self.against}"

    @property
    def about(self) -> dict[str, object]:
        """What a row of a file has to say beside its figures."""
        scene = self.scene()
        origin = {} if scene is None else origin_of(scene)
        return {**origin, "labels": self.source, "reference": self.against}


def count(work: Work, scene: Scene, asked: Asked) -> Regions:
    """The loads of all regions, gate by gate, in any thread; it can be cancelled between two gates."""
    from napari_shmoareg.analysis.region_loads import region_loads

    work.tell("reading the regions")
    labels, names = asked.source.volume(scene), asked.source.names(scene)
    reference = None if asked.reference == WHOLE else asked.reference
    places, loads = _places(scene, asked.where), []
    for n, place in enumerate(places):
        work.tell(f"counting gate {n + 1} of {len(places)}", n / len(places))
        loads += region_loads(scene, labels, names=names, reference=reference, **place._asdict())
    work.check()
    gates, source = said_where(asked.where), str(asked.source)
    return Regions(loads, labels, weakref.ref(scene), names, asked.reference, gates, source, asked.key)


def share_of_reference(scene: Scene, found: Regions, load: RegionLoad) -> np.ndarray | None:
    """Share of the reference (N,) at a load's place; None where it is not known."""
    if found.reference == TOGETHER:
        here = [one for one in found.loads if one.place == load.place]
        return np.average([one.share for one in here], axis=0, weights=[one.tokens for one in here])
    if found.reference != WHOLE:
        same = (one for one in found.loads if one.region == found.reference and one.place == load.place)
        return next((one.share for one in same), None)
    return selections(scene, **{name: value for name, value in load.place._asdict().items() if value is not None})


def middle_of(labels: Volume, region: int) -> np.ndarray:
    """The centre, mm RAS, of the voxel of a region that is nearest to its centroid."""
    voxels = np.argwhere(labels.values == region)
    if not len(voxels):
        return labels.grid.centre
    points = labels.grid.to_world(voxels)
    nearest = np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()
    return np.asarray(points[nearest])


def _places(scene: Scene, where: dict[str, Any]) -> list[Place]:
    """The gates that are meant, in the order in which `region_loads` has them."""
    sources: Sequence[Any] = [*scene.token_loads, *scene.expert_maps]
    return [one.place for one in sources if all(getattr(one.place, name) == value for name, value in where.items())]
