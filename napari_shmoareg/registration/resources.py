"""Memory estimated before it is taken; device and precision."""

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


# Upper bounds, from measured peaks of the presets at 64 and 96 cubed on a CPU.
PER_FULL_CHANNEL = 56  # bytes per voxel of the network grid
PER_CHANNEL = 4  # the same, for a channel of half resolution or of the first encoder layer
PER_VOXEL = 100
AT_ALL = 256 * 2**20
PER_OUTPUT_VOXEL = 64  # bytes per voxel of the fixed image: fields, warped volumes, Jacobian
# bytes per voxel of the fixed image beside one run of an experiment; measured 137
PER_COMPARED_VOXEL = 144
# bytes per voxel of moving and fixed: float copies while reading and smoothing
PER_INPUT_VOXEL = 24
PER_REFINED_VOXEL = 320  # bytes per voxel of the network grid; measured 221 (lncc) and 294 (mind)
CHECKPOINTED = 9  # the same with checkpointing; measured 3.6 to 8.6
# times the network's part of one forward pass: both orders, with gradients; measured 6.4 to 9.8
TRAINING = 10
USABLE = 0.9  # of the memory that is free


def estimate_memory(config: SHMoARegConfig, shape: Sequence[int]) -> int:
    """Bytes in use at the worst moment of one forward pass without gradients.

    Parameters
    ----------
    config : SHMoARegConfig
    shape : (D, H, W)
        Of the network grid; it is padded to a multiple of the coarsest stride.
    """
    voxels = prod(-(-int(n) // config.stride) * config.stride for n in shape)
    per_voxel = PER_FULL_CHANNEL * config.full_channels + PER_CHANNEL * (
        config.half_channels + config.embed_dim
    )
    return AT_ALL + voxels * (per_voxel + PER_VOXEL)


def check_images_memory(moving: Grid, fixed: Grid) -> None:
    """Refuse a pair whose results on the fixed grid would not fit into memory.

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
    """Refuse an experiment whose two outcomes would not fit into memory beside each other.

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
    """Refuse a network grid that would not fit on the device, and say which would; without a
    network, for refinement.

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
    """Bytes that are needed, and bytes that may be taken."""

    need: int
    free: int


def training_memory(
    config: SHMoARegConfig,
    shape: Sequence[int],
    device: torch.device,
    settings: FineTuning | None = None,
) -> Memory:
    """What a step of learning needs at its worst moment, and what there is.

    Parameters
    ----------
    config : SHMoARegConfig
    shape : (D, H, W)
        Of the network grid.
    device : torch.device
    settings : FineTuning, optional
        With checkpointing it needs less.
    """
    again = settings is not None and settings.checkpointing
    total = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    need = AT_ALL + (CHECKPOINTED if again else TRAINING) * (
        estimate_memory(config, shape) - AT_ALL
    )
    return Memory(round(need), int(USABLE * total))


def check_training_memory(
    config: SHMoARegConfig,
    shape: Sequence[int],
    device: torch.device,
    settings: FineTuning | None = None,
) -> None:
    """Refuse a grid on which one step of learning would not fit on the device, and say what would.

    Raises
    ------
    TooLargeError
    """
    need, free = training_memory(config, shape, device, settings)
    if need <= free:
        return
    again = settings is not None and settings.checkpointing
    fits = (free - AT_ALL) / (CHECKPOINTED if again else TRAINING) + AT_ALL
    advice = _advice(config, shape, fits)
    if not again and AT_ALL + CHECKPOINTED * (estimate_memory(config, shape) - AT_ALL) <= free:
        advice = f"With {{checkpointing:True}} it would fit, more slowly. {advice}"
    raise TooLargeError(
        f"A step of learning on the grid {tuple(shape)} needs about {_gib(need)} of memory on"
        f" '{device}'; {_gib(free)} are free.",
        remedy=advice,
    )


def too_large_for(
    device: torch.device, shape: Sequence[int], error: RuntimeError
) -> TooLargeError | None:
    """The same in plain words for an error of torch, where it is about memory."""
    said = str(error).lower()
    if (
        not isinstance(error, torch.OutOfMemoryError)
        and "allocate memory" not in said
        and "not enough memory" not in said
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
    """Of a network, and of a refinement, which comes after it and needs less than any."""
    return (
        AT_ALL + PER_REFINED_VOXEL * prod(shape)
        if config is None
        else estimate_memory(config, shape)
    )


def _advice(config: SHMoARegConfig | None, shape: Sequence[int], free: float) -> str:
    """The remedy of an `InputError`: the largest size that fits."""
    longest = max(shape)
    for size in range(longest - 1, (16 if config is None else config.stride) - 1, -1):
        if _on_grid(config, [ceil(n * size / longest) for n in shape]) <= free:
            return f"About {{size:{size}}} would fit."
    return "No size would fit: use a machine with more memory, or close other programs."


def _gib(amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB"


AMPERE = (8, 0)  # the first compute capability with bfloat16 in its tensor cores


def find_device(name: str) -> torch.device:
    """The device of a name.

    Raises
    ------
    InputError
        If the name is none of "auto", "cpu" and "cuda", or "cuda" is asked for and there is none.
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
            f"The device cuda was asked for, but {built}.",
            remedy="Use {device:cpu}, or install a CUDA build of PyTorch on a machine with an"
            " NVIDIA GPU.",
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def choose_bfloat16(choice: str, device: str | torch.device) -> tuple[bool, str]:
    """Whether bfloat16 is used on a device, and why.

    Ours: where a CPU has no instructions for it, a 3-D convolution in bfloat16 takes up to a
    hundred times as long as in float32 (32.8 s against 0.29 s, measured on AVX2).

    Parameters
    ----------
    choice : {"auto", "on", "off"}
        auto: where the device is fast at it, which are GPUs of compute capability 8.0 or higher,
        and CPUs with AVX-512 BF16 or AMX.
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
    # the instructions alone do nothing: PyTorch would fall back to its slow loops
    if not _onednn_takes_bfloat16():
        return False, f"this CPU has {found[0]}, but PyTorch's oneDNN does not use it"
    return True, f"this CPU has {found[0]}"


_INSTRUCTIONS = (
    ("AMX", ("amx_bf16", "_is_amx_tile_supported")),
    ("AVX-512 BF16", ("avx512_bf16", "_is_avx512_bf16_supported")),
)


def _has(flag: str, probe: str) -> bool:
    """Whether PyTorch finds an instruction set: by its table of them, or in a version without one
    by a function.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return bool(capabilities().get(flag, False))
    asked = getattr(torch.cpu, probe, None)
    return asked is not None and bool(asked())


def _onednn_takes_bfloat16() -> bool:
    """What PyTorch looks at before it hands a bfloat16 convolution to oneDNN; on AVX-512 alone that
    emulates it.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is None or bool(asked())
