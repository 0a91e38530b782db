"""NiftyReg's free-form deformation (Modat et al. 2010), by its programs reg_f3d and reg_transform."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from napari_shmoareg.engine.peers.aligned import deform_aligned
from napari_shmoareg.engine.peers.demons import itk_image
from napari_shmoareg.geometry import DisplacementField, Grid, VolumePair

RAS = (-1.0, -1.0, 1.0)  # along the array's axes, of an image that ITK writes with axes of L, P and S


@dataclass(frozen=True)
class NiftyReg:
    """``reg_f3d`` with its defaults after our alignment.

    These are, in version 1.5: cubic B-splines with 5 voxels between control points, normalised mutual information of 64
    bins, 0.001 of bending energy and 0.01 of linear energy, three levels of at most 600, 300 and 150 iterations, no
    velocity field.  As many threads as PyTorch has.  The programs exchange files: they go into a temporary folder,
    which the time includes.  Tried with version 1.5.70, built from its sources.

    Raises
    ------
    RuntimeError
        By `run`, if one of the programs fails, with the end of what it said.
    """

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, _deform)


def _deform(fixed: NDArray, moving: NDArray, grid: Grid) -> NDArray:
    """On images without origin or direction, so that components run along the array's axes."""
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as folder:
        for name, values in (("fixed", fixed), ("moving", moving)):
            sitk.WriteImage(itk_image(values, grid), str(Path(folder) / f"{name}.nii"))
        _run(folder, "reg_f3d -ref fixed.nii -flo moving.nii -cpp cpp.nii -res warped.nii")
        _run(folder, "reg_transform -ref fixed.nii -disp cpp.nii disp.nii")
        vectors = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(folder) / "disp.nii"))).transpose(2, 1, 0, 3)
    return np.ascontiguousarray(vectors * RAS / np.asarray(grid.spacing))


def _run(folder: str, command: str) -> None:
    """A program, in a folder; threads by the variable, as -omp is refused by builds without OpenMP."""
    words, environment = command.split(), os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    if ended.returncode != 0:
        said = " ".join((ended.stderr or ended.stdout).split())[-500:]
        raise RuntimeError(f"{words[0]} ended with code {ended.returncode}: {said or 'it said nothing'}")
