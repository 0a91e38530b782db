"""Adam, made so that a window on the same machine stays alive."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

MAPPED = Path("/proc/self/maps")  # what a Linux process has loaded


def adam(parameters: Any, **options: Any) -> torch.optim.Adam:
    """``torch.optim.Adam``; its first use loads torch's compiler, which is made harmless where it would crash."""
    with without_triton():
        return torch.optim.Adam(parameters, **options)


@contextmanager
def without_triton() -> Iterator[None]:
    """Hide triton from what is imported in here, if it is not loaded yet and loading it would crash the process.

    Builds of torch with CUDA bring triton, whose LLVM and that of a software or AMD OpenGL driver do not stand each
    other: seen as a segmentation fault of ``import triton`` after a window had drawn by Mesa's llvmpipe.  Nothing
    here is compiled, so nothing is lost.
    """
    if "triton" in sys.modules or not MAPPED.is_file() or "libLLVM" not in MAPPED.read_text(errors="replace"):
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["triton"]
