"""Our own methods, as peers: the headers, the alignment, the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from napari_shmoareg.engine.affine import align
from napari_shmoareg.engine.refinement import DEFAULT_SMOOTHNESS
from napari_shmoareg.engine.registration import register
from napari_shmoareg.geometry import DisplacementField, Transform, VolumePair

if TYPE_CHECKING:
    from napari_shmoareg.model import SHMoAReg


class Method(Protocol):
    """A way to register a pair."""

    def run(self, pair: VolumePair) -> DisplacementField:
        """The displacement of the whole transform, T(x) - x, on the fixed grid, mm RAS."""


@dataclass(frozen=True)
class Start:
    """Nothing is moved: the images stand where their headers put them."""

    def run(self, pair: VolumePair) -> DisplacementField:
        """No displacement."""
        return DisplacementField(np.zeros((*pair.fixed.grid.shape, 3), dtype=np.float32), pair.fixed.grid)


@dataclass(frozen=True)
class Affine:
    """The alignment that `register` begins with, mode auto."""

    def run(self, pair: VolumePair) -> DisplacementField:
        """The affine as a field."""
        return Transform(align(pair, "auto").matrix).total(pair.fixed.grid)


@dataclass(frozen=True, eq=False)
class Registered:
    """`register` as by default: alignment, then the network; with `refine`, that many steps on the pair after it.

    Parameters
    ----------
    network : SHMoAReg or None
        None: no network.
    size, diffeomorphic, device, contrast
        As for `register`; `smoothness` too.
    refine : int
        Steps of refinement; 0 is none.
    seconds : float, optional
        After which the refinement ends.
    similarity : {"auto", "lncc", "mind"}
        Of the refinement.
    """

    network: SHMoAReg | None = None
    size: int | str | None = None
    diffeomorphic: bool | None = None
    device: str = "auto"
    refine: int = 0
    similarity: str = "auto"
    contrast: str = "auto"
    smoothness: str = DEFAULT_SMOOTHNESS
    seconds: float | None = None
    deforming: list[float] = field(default_factory=list)  # seconds of network and refinement, a number per run

    def run(self, pair: VolumePair) -> DisplacementField:
        """All that `register` does, its measuring included."""
        more: dict[str, Any] = {}
        if self.refine:
            more = {"refine": self.refine, "similarity": self.similarity, "refine_seconds": self.seconds}
        found = register(
            pair,
            self.network,
            size=self.size,
            diffeomorphic=self.diffeomorphic,
            device=self.device,
            contrast=self.contrast,
            smoothness=self.smoothness,
            **more,
        )
        self.deforming.append(sum(found.seconds.get(phase, 0.0) for phase in ("network", "refine")))
        return found.displacement
