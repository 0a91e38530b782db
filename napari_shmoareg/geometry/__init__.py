"""Where voxels stand, and fields that move them: the ground floor.

What needs torch is imported when first asked for, so that errors and grids come at once.
`resample` has the name of its file: ``from napari_shmoareg.geometry.resample import resample``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from napari_shmoareg.geometry.background import background
from napari_shmoareg.geometry.errors import InputError, NoOverlapError, TooLargeError
from napari_shmoareg.geometry.grid import Grid
from napari_shmoareg.geometry.volume import Volume, VolumePair, float_type

if TYPE_CHECKING:
    from napari_shmoareg.geometry.resample import apply_affine, inside, pull, slabs
    from napari_shmoareg.geometry.transform import DisplacementField, Transform, warp_volume

__all__ = [
    "DisplacementField",
    "Grid",
    "InputError",
    "NoOverlapError",
    "TooLargeError",
    "Transform",
    "Volume",
    "VolumePair",
    "apply_affine",
    "background",
    "float_type",
    "inside",
    "pull",
    "slabs",
    "warp_volume",
]

_TRANSFORM = {"DisplacementField", "Transform", "warp_volume"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{'transform' if name in _TRANSFORM else 'resample'}")
    globals()[name] = getattr(module, name)
    return globals()[name]
