"""What a registration needs of memory, asked before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch

from napari_shmoareg.geometry import Grid, TooLargeError

if TYPE_CHECKING:
    from napari_shmoareg.engine.training_settings import FineTuning
    from napari_shmoareg.model import SHMoARegConfig

# Upper bounds, from measured peaks of the presets at 64 and 96 cubed on a CPU.
PER_FULL_CHANNEL = 56  # bytes per voxel of the network grid
PER_CHANNEL = 4  # the same, for a channel of half resolution or of the first encoder layer
PER_VOXEL = 100
AT_ALL = 256 * 2**20
PER_OUTPUT_VOXEL = 64  # bytes per voxel of the fixed image: fields, warped volumes, Jacobian
PER_COMPARED_VOXEL = 144  # bytes per voxel of the fixed image beside one run of an experiment; measured 137
PER_INPUT_VOXEL = 24  # bytes per voxel of moving and fixed: float copies while reading and smoothing
PER_REFINED_VOXEL = 320  # bytes per voxel of the network grid; measured 221 (lncc) and 294 (mind)
CHECKPOINTED = 9  # the same with checkpointing; measured 3.6 to 8.6
TRAINING = 10  # times the network's part of one forward pass: both orders, with gradients; measured 6.4 to 9.8
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
    per_voxel = PER_FULL_CHANNEL * config.full_channels + PER_CHANNEL * (config.half_channels + config.embed_dim)
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
            f"The results on the fixed image's grid {fixed.shape} (moving {moving.shape}) need about {_gib(need)} of "
            f"memory; {_gib(free)} are free. Crop the images, or resample them to voxels "
            f"{(need / free) ** (1 / 3):.1f} times as long, or use a machine with more memory."
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
            f"Runs compared on the fixed image's grid {fixed.shape} need about {_gib(need)} of memory; {_gib(free)} "
            "are free. Close other registrations or programs, or register a cropped or coarser fixed image."
        )


def check_network_memory(
    config: SHMoARegConfig | None, network: Grid, *, moving: Grid, fixed: Grid, device: torch.device
) -> None:
    """Refuse a network grid that would not fit on the device, and say which would; without a network, for refinement.

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
            f"The network grid {network.shape} needs about {_gib(need)} of memory on '{device}'; {_gib(free)} are "
            f"free. {_advice(config, network.shape, free)}"
        )


class Memory(NamedTuple):
    """Bytes that are needed, and bytes that may be taken."""

    need: int
    free: int


def training_memory(
    config: SHMoARegConfig, shape: Sequence[int], device: torch.device, settings: FineTuning | None = None
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
    total = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    need = AT_ALL + (CHECKPOINTED if again else TRAINING) * (estimate_memory(config, shape) - AT_ALL)
    return Memory(round(need), int(USABLE * total))


def check_training_memory(
    config: SHMoARegConfig, shape: Sequence[int], device: torch.device, settings: FineTuning | None = None
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
        advice = f"With --checkpointing (in Python: checkpointing=True) it would fit, more slowly. {advice}"
    raise TooLargeError(
        f"A step of learning on the grid {tuple(shape)} needs about {_gib(need)} of memory on '{device}'; "
        f"{_gib(free)} are free. {advice}"
    )


def too_large_for(device: torch.device, shape: Sequence[int], error: RuntimeError) -> TooLargeError | None:
    """The same in plain words for an error of torch, where it is about memory."""
    said = str(error).lower()
    if (
        not isinstance(error, torch.OutOfMemoryError)
        and "allocate memory" not in said
        and "not enough memory" not in said
    ):
        return None
    return TooLargeError(
        f"The memory of '{device}' ran out on the network grid {tuple(shape)}. Give a --size (in Python: size=) below "
        f"{max(shape)}, or close other programs that use it."
    )


def _for_images(moving: Grid, fixed: Grid) -> int:
    return PER_OUTPUT_VOXEL * prod(fixed.shape) + PER_INPUT_VOXEL * (prod(moving.shape) + prod(fixed.shape))


def _on_grid(config: SHMoARegConfig | None, shape: Sequence[int]) -> int:
    """Of a network, and of a refinement, which comes after it and needs less than any."""
    return AT_ALL + PER_REFINED_VOXEL * prod(shape) if config is None else estimate_memory(config, shape)


def _advice(config: SHMoARegConfig | None, shape: Sequence[int], free: float) -> str:
    longest = max(shape)
    for size in range(longest - 1, (16 if config is None else config.stride) - 1, -1):
        if _on_grid(config, [ceil(n * size / longest) for n in shape]) <= free:
            return f"About --size {size} (in Python: size={size}) would fit."
    return "No size would fit: use a machine with more memory, or close other programs."


def _gib(amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB"
