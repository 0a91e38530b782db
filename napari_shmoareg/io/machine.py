"""Software versions and processor, for reports. Does not load torch."""

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
    """Versions of shmoareg, Python and the libraries; None for one that is not installed."""
    found: dict[str, str | None] = {"shmoareg": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"torch": torch_build()["__version__"]}  # with its build: +cpu, +cu130


def torch_build() -> dict[str, Any]:
    """PyTorch's build information ("__version__", "cuda", ...), read without loading PyTorch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {"__version__": None, "cuda": None}
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))


def machine() -> dict[str, Any]:
    """Name of the processor and number of CPUs."""
    import psutil

    info = Path("/proc/cpuinfo")
    lines = (
        info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    )
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
    )
    return {"processor": model or platform.processor() or "unknown", "CPUs": psutil.cpu_count()}
