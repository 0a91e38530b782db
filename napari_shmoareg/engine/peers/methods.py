"""Our own methods, as peers: the headers, the alignment, the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from napari_shmoareg.engine.affine import align
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
class Network:
    """`register` as by default: alignment, then the network; with `refine`, that many steps on the pair after it.

    Parameters
    ----------
    network : SHMoAReg
    size, diffeomorphic, device, contrast
        As for `register`.
    refine : int
        Steps of refinement; 0 is none.
    similarity : {"auto", "lncc", "mind"}
        Of the refinement.
    """

    network: SHMoAReg
    size: int | str | None = None
    diffeomorphic: bool | None = None
    device: str = "auto"
    refine: int = 0
    similarity: str = "auto"
    contrast: str = "auto"

    def run(self, pair: VolumePair) -> DisplacementField:
        """All that `register` does, its measuring included."""
        more: dict[str, Any] = {"refine": self.refine, "similarity": self.similarity} if self.refine else {}
        return register(
            pair,
            self.network,
            size=self.size,
            diffeomorphic=self.diffeomorphic,
            device=self.device,
            contrast=self.contrast,
            **more,
        ).displacement
