"""SHMoAReg: register 3D medical images with a mixture of experts that you can inspect.

The public names of the package.  Each is imported on first use, so that importing the package is
cheap.
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

_MODULES = {
    "Registration": "registration.register",
    "RegistrationSettings": "settings",
    "load_network": "io.checkpoint",
    "read_pair": "io.images",
    "register": "registration.register",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
