"""Loads what a registration needs, beside the viewer."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

LIBRARIES = {"torch": "lib/libtorch*.so", "SimpleITK": "_SimpleITK*.so"}  # whose loading takes long
FIRST = ("libtorch_cpu.so", "libtorch_cuda.so", "_SimpleITK")


class Ready(NamedTuple):
    """What there is to run with: names of the shipped weights, and whether there is a CUDA device."""

    weights: tuple[str, ...]
    cuda: bool


class WarmUp:
    """Imports in a thread of their own, started once; `ready` is None until they are done.

    A first import of torch would hold the viewer up for half a second wherever it happens, as Python lets nothing
    else run while a library is loaded.  So the large ones are loaded by the system beforehand, which Python waits
    for without holding anything up.
    """

    def __init__(self) -> None:
        self.ready: Ready | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if that was not done yet."""
        if self._thread is None:
            # No daemon: a program that ends while a library is being loaded is aborted by the system.
            self._thread = threading.Thread(target=self._run, name="shmoareg warm-up")
            self._thread.start()

    @property
    def begun(self) -> bool:
        """Whether it was started."""
        return self._thread is not None

    @property
    def over(self) -> bool:
        """Whether it ended, well or not; if not, the registration itself will say why."""
        return self._thread is not None and not self._thread.is_alive()

    def wait(self) -> None:
        """Until it is over, in another thread."""
        self.start()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        collecting = gc.isenabled()
        gc.disable()  # a collection among all that is loaded would hold the viewer up as well
        try:
            for package, pattern in LIBRARIES.items():
                _load(package, pattern)
            self.ready = _import_all()
        finally:
            if collecting:
                gc.enable()


def _load(package: str, pattern: str) -> None:
    """Have the system load a package's large libraries, without holding Python's lock."""
    found = importlib.util.find_spec(package)
    if package in sys.modules or found is None or found.origin is None or sys.platform == "win32":
        return
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    for path in sorted(Path(found.origin).parent.glob(pattern)):
        if path.name.startswith(FIRST):
            dlopen(os.fsencode(path), os.RTLD_NOW)  # where this fails, the import will load it, and say so if it can't


def _import_all() -> Ready:
    import torch

    import napari_shmoareg.analysis.quality
    import napari_shmoareg.engine.registration
    import napari_shmoareg.io.summary
    import napari_shmoareg.widgets.layers  # noqa: F401
    from napari_shmoareg.engine.optimiser import adam
    from napari_shmoareg.io.model_card import shipped_weights

    weight = torch.nn.Parameter(torch.zeros(1))
    weight.sum().backward()
    adam([weight]).step()  # loads what a refinement needs
    return Ready(tuple(shipped_weights()), torch.cuda.is_available())
