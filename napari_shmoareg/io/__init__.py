"""Files: images, transforms, weights, registration folders.

Names are imported lazily, so reading an image does not load PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_shmoareg.io.checkpoint import load_network, save_network
    from napari_shmoareg.io.images import read_image, read_pair, write_image
    from napari_shmoareg.io.label_names import find_label_names, read_label_names
    from napari_shmoareg.io.model_card import read_card, shipped_weights
    from napari_shmoareg.io.registration_folder import (
        read_registration,
        read_scene,
        write_registration,
    )
    from napari_shmoareg.io.samples import sample_pair
    from napari_shmoareg.io.transforms import read_transform, write_displacement, write_transform

__all__ = [
    "find_label_names",
    "load_network",
    "read_card",
    "read_image",
    "read_label_names",
    "read_pair",
    "read_registration",
    "read_scene",
    "read_transform",
    "sample_pair",
    "save_network",
    "shipped_weights",
    "write_displacement",
    "write_image",
    "write_registration",
    "write_transform",
]

_MODULES = {
    "io.checkpoint": (
        "load_network",
        "save_network",
    ),
    "io.images": (
        "read_image",
        "read_pair",
        "write_image",
    ),
    "io.label_names": (
        "find_label_names",
        "read_label_names",
    ),
    "io.model_card": (
        "read_card",
        "shipped_weights",
    ),
    "io.registration_folder": (
        "read_registration",
        "read_scene",
        "write_registration",
    ),
    "io.samples": ("sample_pair",),
    "io.transforms": (
        "read_transform",
        "write_displacement",
        "write_transform",
    ),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"napari_shmoareg.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
