"""Grids, volumes, displacement fields and transforms.

Names are imported on first use, so that a grid does not load PyTorch.  `resample` shares the name
of its module: ``from napari_shmoareg.geometry.resample import resample``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_shmoareg.errors import InputError, NoOverlapError, TooLargeError
    from napari_shmoareg.geometry.grid import Grid
    from napari_shmoareg.geometry.resample import apply_affine, inside, pull, slabs
    from napari_shmoareg.geometry.transform import (
        DisplacementField,
        Transform,
        fit_landmarks,
        warp_volume,
    )
    from napari_shmoareg.geometry.volume import (
        LabelNames,
        Volume,
        VolumePair,
        background,
        fill_value,
        float_type,
    )

__all__ = [
    "DisplacementField",
    "Grid",
    "InputError",
    "LabelNames",
    "NoOverlapError",
    "TooLargeError",
    "Transform",
    "Volume",
    "VolumePair",
    "apply_affine",
    "background",
    "fill_value",
    "fit_landmarks",
    "float_type",
    "inside",
    "pull",
    "slabs",
    "warp_volume",
]

_MODULES = {
    "errors": (
        "InputError",
        "NoOverlapError",
        "TooLargeError",
    ),
    "geometry.grid": ("Grid",),
    "geometry.resample": (
        "apply_affine",
        "inside",
        "pull",
        "slabs",
    ),
    "geometry.transform": (
        "DisplacementField",
        "Transform",
        "fit_landmarks",
        "warp_volume",
    ),
    "geometry.volume": (
        "LabelNames",
        "Volume",
        "VolumePair",
        "background",
        "fill_value",
        "float_type",
    ),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"napari_shmoareg.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
