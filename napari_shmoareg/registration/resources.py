"""Memory estimates and checks; choice of device and precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil, prod
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.geometry import Grid
from napari_shmoareg.settings import RegistrationSettings, check_choice

if TYPE_CHECKING:
    from napari_shmoareg.model import SHMoARegConfig
    from napari_shmoareg.training.settings import FineTuning


# Upper bounds from measured peaks of the presets at 64 and 96 cubed on a CPU.
PER_FULL_CHANNEL = 56  # bytes per voxel of the network grid
PER_CHANNEL = 4  # the same per channel at half resolution or of the first encoder layer
PER_VOXEL = 100
FIXED_MEMORY = 256 * 2**20
PER_OUTPUT_VOXEL = 64  # bytes per voxel of the fixed image: fields, warped volumes, Jacobian
# bytes per voxel of the fixed image in addition to one run of an experiment; measured 137
PER_COMPARED_VOXEL = 144
# bytes per voxel of moving and fixed: float copies during reading and smoothing
PER_INPUT_VOXEL = 24
PER_REFINED_VOXEL = 320  # bytes per voxel of the network grid; measured 221 (lncc) and 294 (mind)
# multiples of the network's part of one forward pass: both orders, with gradients; measured 6.4 to
# 9.8, and with checkpointing 3.6 to 8.6
TRAINING = 10
CHECKPOINTED = 9
USABLE = 0.9  # fraction of the free memory


def estimate_memory(config: SHMoARegConfig, shape: Sequence[int]) -> int:
    """Estimate the peak memory in bytes of one forward pass without gradients.

    Parameters
    ----------
    config : SHMoARegConfig
    shape : (D, H, W)
        Of the network grid; padded to a multiple of the coarsest stride.
    """
    voxels = prod(-(-int(n) // config.stride) * config.stride for n in shape)
    per_voxel = PER_FULL_CHANNEL * config.full_channels + PER_CHANNEL * (
        config.half_channels + config.embed_dim
    )
    return FIXED_MEMORY + voxels * (per_voxel + PER_VOXEL)


def check_images_memory(moving: Grid, fixed: Grid) -> None:
    """Check that the results of a pair on the fixed grid fit into memory.

    Raises
    ------
    TooLargeError
    """
    need, free = _for_images(moving, fixed), USABLE * psutil.virtual_memory().available
    if need > free:
        raise TooLargeError(
            f"The results on the fixed image's grid {fixed.shape} (moving {moving.shape}) need"
            f" about {_gib(need)} of memory; {_gib(free)} are free. Crop the images, or resample"
            f" them to voxels {(need / free) ** (1 / 3):.1f} times as long, or use a machine with"
            " more memory."
        )


def check_experiment_memory(fixed: Grid) -> None:
    """Check that the two results of an experiment fit into memory together.

    Raises
    ------
    TooLargeError
    """
    need, free = PER_COMPARED_VOXEL * prod(fixed.shape), USABLE * psutil.virtual_memory().available
    if need > free:
        raise TooLargeError(
            f"Runs compared on the fixed image's grid {fixed.shape} need about {_gib(need)} of"
            f" memory; {_gib(free)} are free. Close other registrations or programs, or register a"
            " cropped or coarser fixed image."
        )


def check_network_memory(
    config: SHMoARegConfig | None, network: Grid, *, moving: Grid, fixed: Grid, device: torch.device
) -> None:
    """Check that a network grid, or without a network the refinement, fits on the device.

    Raises
    ------
    TooLargeError
    """
    if device.type == "cuda":
        free = USABLE * torch.cuda.mem_get_info(device)[0]
    else:
        free = max(0.0, USABLE * psutil.virtual_memory().available - _for_images(moving, fixed))
    need = _on_grid(config, network.shape)
    if need > free:
        raise TooLargeError(
            f"The network grid {network.shape} needs about {_gib(need)} of memory on '{device}';"
            f" {_gib(free)} are free.",
            remedy=_advice(config, network.shape, free),
        )


class Memory(NamedTuple):
    """Bytes needed and bytes available."""

    need: int
    free: int


def training_memory(
    config: SHMoARegConfig,
    shape: Sequence[int],
    device: torch.device,
    settings: FineTuning | None = None,
) -> Memory:
    """Estimate the peak memory of a training step, and the available memory.

    Parameters
    ----------
    config : SHMoARegConfig
    shape : (D, H, W)
        Of the network grid.
    device : torch.device
    settings : FineTuning, optional
        For `checkpointing`, which needs less.
    """
    checkpointing = settings is not None and settings.checkpointing
    total = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    need = FIXED_MEMORY + (CHECKPOINTED if checkpointing else TRAINING) * (
        estimate_memory(config, shape) - FIXED_MEMORY
    )
    return Memory(round(need), int(USABLE * total))


def check_training_memory(
    config: SHMoARegConfig,
    shape: Sequence[int],
    device: torch.device,
    settings: FineTuning | None = None,
) -> None:
    """Check that a training step on a grid fits on the device.

    Raises
    ------
    TooLargeError
    """
    need, free = training_memory(config, shape, device, settings)
    if need <= free:
        return
    checkpointing = settings is not None and settings.checkpointing
    fits = (free - FIXED_MEMORY) / (CHECKPOINTED if checkpointing else TRAINING) + FIXED_MEMORY
    advice = _advice(config, shape, fits)
    if (
        not checkpointing
        and FIXED_MEMORY + CHECKPOINTED * (estimate_memory(config, shape) - FIXED_MEMORY) <= free
    ):
        advice = f"With {{checkpointing:True}} it would fit, but run slower. {advice}"
    raise TooLargeError(
        f"A training step on the grid {tuple(shape)} needs about {_gib(need)} of memory on"
        f" '{device}'; {_gib(free)} are free.",
        remedy=advice,
    )


def too_large_for(
    device: torch.device, shape: Sequence[int], error: RuntimeError
) -> TooLargeError | None:
    """Convert an out-of-memory error of torch; None for other errors."""
    message = str(error).lower()
    if (
        not isinstance(error, torch.OutOfMemoryError)
        and "allocate memory" not in message
        and "not enough memory" not in message
    ):
        return None
    return TooLargeError(
        f"The memory of '{device}' ran out on the network grid {tuple(shape)}.",
        remedy=f"Give a {{size}} below {max(shape)}, or close other programs that use it.",
    )


def _for_images(moving: Grid, fixed: Grid) -> int:
    return PER_OUTPUT_VOXEL * prod(fixed.shape) + PER_INPUT_VOXEL * (
        prod(moving.shape) + prod(fixed.shape)
    )


def _on_grid(config: SHMoARegConfig | None, shape: Sequence[int]) -> int:
    """Estimate the memory of a network, or without one of a refinement, which needs less."""
    return (
        FIXED_MEMORY + PER_REFINED_VOXEL * prod(shape)
        if config is None
        else estimate_memory(config, shape)
    )


def _advice(config: SHMoARegConfig | None, shape: Sequence[int], free: float) -> str:
    """Suggest the largest size that fits, as remedy of an `InputError`."""
    longest = max(shape)
    for size in range(longest - 1, (16 if config is None else config.stride) - 1, -1):
        if _on_grid(config, [ceil(n * size / longest) for n in shape]) <= free:
            return f"About {{size:{size}}} would fit."
    return "No size would fit: use a machine with more memory, or close other programs."


def _gib(amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB"


AMPERE = (8, 0)  # the first compute capability with bfloat16 in its tensor cores


def find_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises
    ------
    InputError
        If the name is not valid, or "cuda" is requested but not available.
    """
    check_choice(RegistrationSettings, "device", name)
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        built = (
            "this build of PyTorch has no CUDA"
            if torch.version.cuda is None
            else "PyTorch finds no CUDA GPU"
        )
        raise InputError(
            f"The device cuda was requested, but {built}.",
            remedy="Use {device:cpu}, or install a CUDA build of PyTorch on a machine with an"
            " NVIDIA GPU.",
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def choose_bfloat16(choice: str, device: str | torch.device) -> tuple[bool, str]:
    """Decide whether to use bfloat16 on a device, and why.

    Ours: on a CPU without instructions for it, a 3D convolution in bfloat16 takes up to a hundred
    times as long as in float32 (32.8 s instead of 0.29 s, measured on AVX2).

    Parameters
    ----------
    choice : {"auto", "on", "off"}
        auto: if the device is fast at it: GPUs of compute capability 8.0 or higher, and CPUs with
        AVX-512 BF16 or AMX.
    device : str or torch.device

    Returns
    -------
    used : bool
    reason : str
    """
    if choice != "auto":
        return choice == "on", "as requested"
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
    # without oneDNN, PyTorch would fall back to its slow loops
    if not _onednn_supports_bfloat16():
        return False, f"this CPU has {found[0]}, but PyTorch's oneDNN does not use it"
    return True, f"this CPU has {found[0]}"


_INSTRUCTIONS = (
    ("AMX", ("amx_bf16", "_is_amx_tile_supported")),
    ("AVX-512 BF16", ("avx512_bf16", "_is_avx512_bf16_supported")),
)


def _has(flag: str, probe: str) -> bool:
    """Whether PyTorch finds an instruction set, by its table or, in older versions, a function."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return bool(capabilities().get(flag, False))
    is_supported = getattr(torch.cpu, probe, None)
    return is_supported is not None and bool(is_supported())


def _onednn_supports_bfloat16() -> bool:
    """Whether PyTorch passes bfloat16 convolutions to oneDNN, which emulates them on AVX-512."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return is_supported is None or bool(is_supported())
