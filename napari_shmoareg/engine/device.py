"""Where a network runs, and in which precision."""

from __future__ import annotations

from functools import cache

import torch

from napari_shmoareg.geometry import InputError

AMPERE = (8, 0)  # the first compute capability with bfloat16 in its tensor cores


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


def choose_bfloat16(choice: str, device: str | torch.device) -> tuple[bool, str]:
    """Whether bfloat16 is used on a device, and why.

    Ours: where a CPU has no instructions for it, a 3-D convolution in bfloat16 takes up to a hundred times as long as
    in float32 (32.8 s against 0.29 s, measured on AVX2).

    Parameters
    ----------
    choice : {"auto", "on", "off"}
        auto: where the device is fast at it, which are GPUs of compute capability 8.0 or higher, and CPUs with
        AVX-512 BF16 or AMX.
    device : str or torch.device

    Returns
    -------
    used : bool
    reason : str
    """
    if choice != "auto":
        return choice == "on", "as asked for"
    return _is_fast_at_bfloat16(torch.device(device))


@cache
def _is_fast_at_bfloat16(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.version.hip:
            return True, f"{name} computes in it"
        capability = torch.cuda.get_device_capability(device)
        number = ".".join(str(n) for n in capability)
        if capability >= AMPERE:
            return True, f"{name} has compute capability {number}"
        return False, f"{name} has compute capability {number}, and bfloat16 is fast from 8.0 on"
    if device.type != "cpu":
        return False, f"not known to be fast on {device.type}"
    found = [words for words, names in _INSTRUCTIONS if _has(*names)]
    if not found:
        return False, "this CPU has neither AVX-512 BF16 nor AMX"
    if not _onednn_takes_bfloat16():  # the instructions alone do nothing: PyTorch would fall back to its slow loops
        return False, f"this CPU has {found[0]}, but PyTorch's oneDNN does not use it"
    return True, f"this CPU has {found[0]}"


_INSTRUCTIONS = (
    ("AMX", ("amx_bf16", "_is_amx_tile_supported")),
    ("AVX-512 BF16", ("avx512_bf16", "_is_avx512_bf16_supported")),
)


def _has(flag: str, probe: str) -> bool:
    """Whether PyTorch finds an instruction set: by its table of them, or in a version without one by a function."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return bool(capabilities().get(flag, False))
    asked = getattr(torch.cpu, probe, None)
    return asked is not None and bool(asked())


def _onednn_takes_bfloat16() -> bool:
    """What PyTorch looks at before it hands a bfloat16 convolution to oneDNN; on AVX-512 alone that emulates it."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is None or bool(asked())
