"""Where a network runs."""

from __future__ import annotations

import torch

from napari_shmoareg.geometry import InputError


def find_device(name: str) -> torch.device:
    """The device of a name.

    Raises
    ------
    InputError
        If the name is none of "auto", "cpu" and "cuda", or "cuda" is asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"The device is one of auto, cpu, cuda; got {name!r}.")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        built = "this build of PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch finds no CUDA GPU"
        raise InputError(
            f"The device cuda was asked for, but {built}. Use --device cpu (in Python: device='cpu'), or install a "
            "CUDA build of PyTorch on a machine with an NVIDIA GPU."
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")
