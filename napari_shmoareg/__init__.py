"""SHMoAReg: register 3D medical images by experts you can see.

This is the face of the package: it lists names and defines nothing.  Each name is loaded
when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_shmoareg.io import load_network, read_pair
    from napari_shmoareg.registration.register import Registration, register
    from napari_shmoareg.settings import RegistrationSettings

__version__ = "0.1.0"
__all__ = [
    "Registration",
    "RegistrationSettings",
    "__version__",
    "load_network",
    "read_pair",
    "register",
]

_HOME = {
    "Registration": "registration.register",
    "RegistrationSettings": "settings",
    "load_network": "io.checkpoint",
    "read_pair": "io.images",
    "register": "registration.register",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
