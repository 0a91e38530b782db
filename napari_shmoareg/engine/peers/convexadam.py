"""ConvexAdam (Siebert et al. 2024): discrete search on MIND features, then Adam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.engine.device import find_device
from napari_shmoareg.engine.peers.aligned import deform_aligned
from napari_shmoareg.geometry import DisplacementField, Grid, VolumePair


@dataclass(frozen=True)
class ConvexAdam:
    """``convexAdam.convex_adam_MIND.convex_adam_pt`` with its defaults, after our alignment.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where there is one, as the package itself does.
    """

    device: str = "auto"

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, self._deform)

    def _deform(self, fixed: NDArray, moving: NDArray, grid: Grid) -> NDArray:
        from convexAdam.convex_adam_MIND import convex_adam_pt

        return np.asarray(convex_adam_pt(fixed, moving, device=find_device(self.device)))
