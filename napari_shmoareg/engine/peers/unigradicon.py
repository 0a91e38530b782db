"""uniGradICON (Tian et al. 2024): one network for many anatomies, with weights that the user gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.engine.device import find_device
from napari_shmoareg.engine.peers.aligned import deform_aligned
from napari_shmoareg.geometry import DisplacementField, Grid, InputError, Volume, VolumePair, background

SIDE = 175  # voxels along each axis of the lattice on which the network works
AIR = -500.0  # HU; only a CT has a background darker than this
WINDOW = (-1000.0, 1000.0)  # HU
BRIGHTEST = 0.99  # quantile of an image that is no CT
EXPECTED = "Expected is the file that its authors publish, Step_2_final.trch of the releases of uncbiag/uniGradICON."


@dataclass(frozen=True, eq=False)
class UniGradICON:
    """The network of ``unigradicon.get_unigradicon`` after our alignment, without its instance optimisation.

    Built from the parts of icon_registration, so that nothing is downloaded.  Intensities as
    ``unigradicon.preprocess`` has them: a CT from -1000 to 1000 HU, anything else from its least value to its 99 %
    quantile, to [0, 1].  Ours: the alignment, as for the other peers that deform only (uniGradICON itself takes images
    as their files have them, each stretched over the lattice); a CT is an image with a background below -500 HU, so
    that one in a narrower window counts as MR; only the map that is needed is computed, not its inverse.

    Parameters
    ----------
    unigradicon_weights : str or Path
        The state dict, as its authors publish it (Step_2_final.trch); that of multiGradICON fits, too.
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    InputError
        If there are no weights, they cannot be read, or they are of another network.
    """

    unigradicon_weights: str | Path | None = None
    device: str = "auto"
    network: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        network = build_network()
        _load(network, self.unigradicon_weights)
        object.__setattr__(self, "network", network.to(find_device(self.device)).eval())

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, self._deform)

    def _deform(self, fixed: NDArray, moving: NDArray, grid: Grid) -> NDArray:
        """With axes reversed for the network, whose own package reads arrays in ITK's order."""
        device = find_device(self.device)
        images = []
        for name, values in (("moving", moving), ("fixed", fixed)):
            scaled = torch.from_numpy(scale(Volume(values, grid, name))).permute(2, 1, 0)[None, None]
            images.append(F.interpolate(scaled.to(device), size=(SIDE,) * 3, mode="trilinear", align_corners=False))
        with torch.inference_mode():
            identity = self.network.identity_map
            displacement = self.network(*images)(identity) - identity
            return voxels_of(displacement.flip(1).permute(0, 1, 4, 3, 2), grid.shape)


def build_network() -> nn.Module:
    """The untrained network, as of ``unigradicon.make_network`` with its last step: four U-Nets, each on its own scale.

    Called with a moving and a fixed image (1, 1, SIDE, SIDE, SIDE) it gives a function from positions to positions
    (1, 3, ...) in the unit cube, where 0 and 1 are the first and the last voxel *centre* along an axis.
    """
    from icon_registration import network_wrappers as wrappers
    from icon_registration.networks import tallUNet2

    def unet() -> Any:
        return wrappers.FunctionFromVectorField(tallUNet2(dimension=3))

    network = unet()
    for _ in range(2):
        network = wrappers.TwoStepRegistration(wrappers.DownsampleRegistration(network, dimension=3), unet())
    network = wrappers.TwoStepRegistration(network, unet())
    network.assign_identity_map([1, 1, SIDE, SIDE, SIDE])
    made: nn.Module = network
    return made


def scale(volume: Volume) -> NDArray[np.float32]:
    """Intensities in [0, 1].

    Raises
    ------
    InputError
        If nearly all voxels hold the least value.
    """
    values = volume.values
    if background(volume) < AIR:
        low, high = WINDOW
    else:
        low, high = float(values.min()), float(np.quantile(values, BRIGHTEST))
        if high <= low:
            raise InputError(
                f"99 % of the voxels of the {volume.name} image hold its least value, and uniGradICON scales to the "
                "99 % quantile. Crop the images to what they show."
            )
    return ((np.clip(values, low, high) - low) / (high - low)).astype(np.float32)


def voxels_of(displacement: Tensor, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """A displacement on the lattice as one on a grid over the same field of view.

    Parameters
    ----------
    displacement : Tensor (1, 3, n, n, n)
        In units of the cube, which is n - 1 voxels of the lattice long; component c along axis c.
    shape : (I, J, K)
        Of the grid.

    Returns
    -------
    (I, J, K, 3) array
        Voxels of the grid.
    """
    count = displacement.shape[2]
    voxels = F.interpolate(displacement * (count - 1), size=shape, mode="trilinear", align_corners=False)
    factors = torch.tensor(shape, dtype=voxels.dtype, device=voxels.device) / count
    return np.asarray((voxels[0].permute(1, 2, 3, 0) * factors).cpu().numpy())


def _load(network: nn.Module, file: str | Path | None) -> None:
    if file is None:
        raise InputError(
            "uniGradICON's weights come with no package, and nothing is downloaded here: give them by "
            f"--unigradicon-weights FILE. {EXPECTED}"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"Cannot read the weights {file}: {error.strerror or error}. {EXPECTED}") from error
    except Exception as error:  # what is no such file fails in many ways
        raise InputError(
            f"{file} holds no weights that PyTorch can read ({type(error).__name__}). {EXPECTED}"
        ) from error
    try:
        network.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise InputError(
            f"The weights in {file} are of another network than uniGradICON: {shorten(str(error), 250)} {EXPECTED}"
        ) from error
