"""ANTs SyN (Avants et al. 2008), by antspyx.

ITK is given our RAS coordinates as they are: nothing in a registration depends on how the
axes of the world are called, and its displacements then come back in mm RAS.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_shmoareg.geometry import DisplacementField, InputError, Volume, VolumePair

SEED = "1"


@dataclass(frozen=True)
class SyN:
    """``ants.registration`` with ``type_of_transform="SyN"``, everything else as antspyx has it.

    Its own affine comes first (Mattes mutual information), then SyN with mutual information, 40, 20 and
    0 iterations.  Ours: a fixed seed (the variable ANTS_RANDOM_SEED, unless it is set), so that with one thread a run
    can be repeated; antspyx has none, and takes the time.  ANTs keeps its transforms in
    files: they go into a temporary folder and are composed into one field, which the time includes.
    """

    def run(self, pair: VolumePair) -> DisplacementField:
        """Affine and deformation, composed by ANTs.

        Raises
        ------
        InputError
            If a grid is sheared, which ITK refuses.
        """
        import ants

        os.environ.setdefault("ANTS_RANDOM_SEED", SEED)
        fixed, moving = _image(pair.fixed), _image(pair.moving)
        with tempfile.TemporaryDirectory() as folder:
            prefix = str(Path(folder) / "syn_")
            found = ants.registration(fixed, moving, type_of_transform="SyN", outprefix=prefix)
            file = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=prefix)
            vectors = ants.image_read(file).numpy()
        return DisplacementField(vectors.astype(np.float32), pair.fixed.grid)


def _image(volume: Volume) -> Any:
    import ants

    grid = volume.grid
    directions = grid.affine[:3, :3] / grid.spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-5:
        raise InputError(f"The axes of '{volume.name}' are not at right angles, which ANTs refuses.")
    return ants.from_numpy(
        np.ascontiguousarray(volume.values, dtype=np.float32),
        origin=grid.affine[:3, 3].tolist(),
        spacing=[float(s) for s in grid.spacing],
        direction=directions,
    )
