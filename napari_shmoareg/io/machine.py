"""Versions and processor that a result was computed with.  Does not load torch."""

from __future__ import annotations

import platform
import runpy
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from napari_shmoareg import __version__

LIBRARIES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "safetensors", "matplotlib")


def versions() -> dict[str, str | None]:
    """Versions of shmoareg, Python and the libraries that made a result; None for one that is not
    installed.
    """
    found: dict[str, str | None] = {"shmoareg": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"torch": torch_build()["__version__"]}  # with its build: +cpu, +cu130


def torch_build() -> dict[str, Any]:
    """What PyTorch says of its build ("__version__", "cuda", ...), without the seconds of loading
    it.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {"__version__": None, "cuda": None}
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))


def machine() -> dict[str, Any]:
    """The processor's name and how many CPUs there are."""
    import psutil

    info = Path("/proc/cpuinfo")
    lines = (
        info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    )
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
    )
    return {"processor": model or platform.processor() or "unknown", "CPUs": psutil.cpu_count()}
