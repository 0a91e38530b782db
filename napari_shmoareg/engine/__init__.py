"""A pair in, a registration out; and learning.

Names are loaded when first used.  `conform` has the name of its file:
``from napari_shmoareg.engine.conform import conform``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_shmoareg.engine.affine import Alignment, align
    from napari_shmoareg.engine.conform import Conformed
    from napari_shmoareg.engine.memory import estimate_memory
    from napari_shmoareg.engine.registration import Registration, register

__all__ = ["Alignment", "Conformed", "Registration", "align", "estimate_memory", "register"]

_HOME = {
    "Alignment": "affine",
    "Conformed": "conform",
    "Registration": "registration",
    "align": "affine",
    "estimate_memory": "memory",
    "register": "registration",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
