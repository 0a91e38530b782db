"""Baselines: registration methods for comparison, from a pair to a displacement.

Ours (start, affine, refinement, network), ANTs SyN (Avants et al. 2008), greedy (Yushkevich et al.
2016), diffeomorphic demons (Vercauteren et al. 2009), ConvexAdam (Siebert et al. 2024), uniGradICON
(Tian et al. 2024), NiftyReg (Modat et al. 2010).  Optional packages are imported on first use.
ITK gets RAS coordinates without conversion: a registration does not depend on the names of the
world axes, and displacements are in mm RAS.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation.methods import (
    METHODS,
    NETWORKS,
    REFINED,
    SMOOTHER,
    START,
    check_available,
    import_modules,
    load_method,
)
from napari_shmoareg.geometry import (
    DisplacementField,
    Grid,
    Transform,
    Volume,
    VolumePair,
    background,
)
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.metrics.measure import Method as EvaluatedMethod
from napari_shmoareg.metrics.measure import MethodResult
from napari_shmoareg.registration.affine import align
from napari_shmoareg.registration.refinement import DEFAULT_STEPS
from napari_shmoareg.registration.register import register
from napari_shmoareg.registration.resources import find_device
from napari_shmoareg.settings import RegistrationSettings

if TYPE_CHECKING:
    import SimpleITK as sitk

    from napari_shmoareg.model import SHMoAReg


SEED = "1"


@dataclass(frozen=True)
class SyN:
    """``ants.registration`` with ``type_of_transform="SyN"`` and the defaults of antspyx.

    ANTs' own affine (Mattes mutual information), then SyN with mutual information, 40, 20 and 0
    iterations.  Ours: a fixed seed (the variable ANTS_RANDOM_SEED, unless it is set), so that a run
    with one thread is reproducible; antspyx uses the time as seed.  ANTs writes its transforms to
    a temporary folder and composes them into one field, which the time includes."""

    def run(self, pair: VolumePair) -> DisplacementField:
        """Affine and deformation, composed by ANTs.

        Raises
        ------
        InputError
            If a grid is sheared, which ITK does not support.
        """
        import ants

        os.environ.setdefault("ANTS_RANDOM_SEED", SEED)
        fixed, moving = _image(pair.fixed), _image(pair.moving)
        with tempfile.TemporaryDirectory() as folder:
            prefix = str(Path(folder) / "syn_")
            found = ants.registration(fixed, moving, type_of_transform="SyN", outprefix=prefix)
            file = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=prefix)
            vectors = ants.image_read(file).numpy()
        return DisplacementField(vectors.astype(np.float32), pair.fixed.grid)


def _image(volume: Volume) -> Any:
    import ants

    grid = volume.grid
    directions = grid.affine[:3, :3] / grid.spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-5:
        raise InputError(
            f"The axes of '{volume.name}' are not at right angles, which ANTs does not support."
        )
    return ants.from_numpy(
        np.ascontiguousarray(volume.values, dtype=np.float32),
        origin=grid.affine[:3, 3].tolist(),
        spacing=[float(s) for s in grid.spacing],
        direction=directions,
    )


class Baseline(Protocol):
    """A way to register a pair."""

    def run(self, pair: VolumePair) -> DisplacementField:
        """The displacement of the whole transform, T(x) - x, on the fixed grid, mm RAS."""


@dataclass(frozen=True)
class Start:
    """The identity: images are compared at the positions in their headers."""

    def run(self, pair: VolumePair) -> DisplacementField:
        """A zero displacement."""
        return DisplacementField(
            np.zeros((*pair.fixed.grid.shape, 3), dtype=np.float32), pair.fixed.grid
        )


@dataclass(frozen=True)
class Affine:
    """The initial alignment of `register`, mode auto."""

    def run(self, pair: VolumePair) -> DisplacementField:
        """The affine as a displacement field."""
        return Transform(align(pair, "auto").matrix).total(pair.fixed.grid)


def deform_aligned(
    pair: VolumePair, deform: Callable[[NDArray, NDArray, Grid], NDArray]
) -> DisplacementField:
    """Align a pair, deform the moving image on the fixed grid, and compose the two.

    Parameters
    ----------
    pair : VolumePair
    deform : callable
        Takes fixed and aligned moving values, both (I, J, K) float32, and their grid; returns the
        displacement u (I, J, K, 3) in voxels, component c along axis c: the moving image is sampled
        at p + u(p).

    Returns
    -------
    DisplacementField
        A(x + d(x)) - x on the fixed grid.
    """
    grid, matrix = pair.fixed.grid, align(pair, "auto").matrix
    moving = resample(pair.moving, grid, world_map=matrix).values
    voxels = torch.from_numpy(deform(pair.fixed.values.astype("float32"), moving, grid)).permute(
        3, 0, 1, 2
    )
    return DisplacementField.from_voxels(voxels[None], grid).after(matrix)


SIDE = 175  # voxels along each axis of the network's input
AIR = -500.0  # HU; only a CT has a darker background
WINDOW = (-1000.0, 1000.0)  # HU
BRIGHTEST = 0.99  # upper quantile for other images than CT
EXPECTED = (
    "The file that its authors publish was expected: Step_2_final.trch from the releases of"
    " uncbiag/uniGradICON."
)


@dataclass(frozen=True, eq=False)
class UniGradICON:
    """The network of ``unigradicon.get_unigradicon`` after our alignment, without its instance
    optimisation.

    Built from icon_registration, so that nothing is downloaded.  Intensities are scaled to [0, 1]
    as in ``unigradicon.preprocess``: CT from -1000 to 1000 HU, other images from their minimum to
    their 99 % quantile.  Ours: the alignment, as for the other methods that only deform
    (uniGradICON itself stretches each unaligned image over its grid); an image with a background
    below -500 HU is a CT, so a CT in a narrower window counts as MR; only the required map is
    computed, not its inverse.

    Parameters
    ----------
    unigradicon_weights : str or Path
        The published state dict (Step_2_final.trch); that of multiGradICON works too.
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    InputError
        If there are no weights, or they cannot be read or belong to another network.
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
        """Run the network with reversed axes, as its package reads arrays in ITK's order."""
        device = find_device(self.device)
        images = []
        for name, values in (("moving", moving), ("fixed", fixed)):
            scaled = torch.from_numpy(scale(Volume(values, grid, name))).permute(2, 1, 0)[
                None, None
            ]
            images.append(
                F.interpolate(
                    scaled.to(device), size=(SIDE,) * 3, mode="trilinear", align_corners=False
                )
            )
        with torch.inference_mode():
            identity = self.network.identity_map
            displacement = self.network(*images)(identity) - identity
            return voxels_of(displacement.flip(1).permute(0, 1, 4, 3, 2), grid.shape)


def build_network() -> nn.Module:
    """Build the untrained network of ``unigradicon.make_network``: four U-Nets, one per scale.

    Given a moving and a fixed image (1, 1, SIDE, SIDE, SIDE), it returns a function from positions
    to positions (1, 3, ...) in the unit cube, where 0 and 1 are the first and the last voxel
    *centre* along an axis."""
    from icon_registration import network_wrappers as wrappers
    from icon_registration.networks import tallUNet2

    def unet() -> Any:
        return wrappers.FunctionFromVectorField(tallUNet2(dimension=3))

    network = unet()
    for _ in range(2):
        network = wrappers.TwoStepRegistration(
            wrappers.DownsampleRegistration(network, dimension=3), unet()
        )
    network = wrappers.TwoStepRegistration(network, unet())
    network.assign_identity_map([1, 1, SIDE, SIDE, SIDE])
    made: nn.Module = network
    return made


def scale(volume: Volume) -> NDArray[np.float32]:
    """Scale intensities to [0, 1].

    Raises
    ------
    InputError
        If 99 % of the voxels have the minimum value.
    """
    values = volume.values
    if background(volume) < AIR:
        low, high = WINDOW
    else:
        low, high = float(values.min()), float(np.quantile(values, BRIGHTEST))
        if high <= low:
            raise InputError(
                f"99 % of the voxels of the {volume.name} image have its minimum value, but"
                " uniGradICON scales to the 99 % quantile. Crop the images to their content."
            )
    return ((np.clip(values, low, high) - low) / (high - low)).astype(np.float32)


def voxels_of(displacement: Tensor, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Resample the network's displacement to a grid (I, J, K, 3) with the same field of view.

    Parameters
    ----------
    displacement : Tensor (1, 3, n, n, n)
        In units of the cube, whose edge is n - 1 voxels of the network; component c along axis c.
    shape : (I, J, K)
        Shape of the grid; the result is in its voxels.
    """
    count = displacement.shape[2]
    voxels = F.interpolate(
        displacement * (count - 1), size=shape, mode="trilinear", align_corners=False
    )
    factors = torch.tensor(shape, dtype=voxels.dtype, device=voxels.device) / count
    return np.asarray((voxels[0].permute(1, 2, 3, 0) * factors).cpu().numpy())


def _load(network: nn.Module, file: str | Path | None) -> None:
    if file is None:
        raise InputError(
            "The weights of uniGradICON are not part of any package, and nothing is downloaded.",
            remedy=f"Give {{unigradicon_weights:FILE}}. {EXPECTED}",
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(
            f"Cannot read the weights {file}: {error.strerror or error}. {EXPECTED}"
        ) from error
    except Exception as error:  # other files fail in many ways
        raise InputError(
            f"{file} holds no weights that PyTorch can read ({type(error).__name__}). {EXPECTED}"
        ) from error
    try:
        network.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise InputError(
            f"The weights in {file} do not belong to uniGradICON:"
            f" {shorten(str(error), 250)} {EXPECTED}"
        ) from error


LEVELS = ((4, 60), (2, 40), (1, 20))  # shrink factor and iterations
# standard deviation of the Gaussian that smooths the field after each step, voxels of the level
SMOOTHING = 1.5
MIN_SIZE = 8  # voxels along an axis, below which it is not shrunk further


@dataclass(frozen=True)
class Demons:
    """SimpleITK's DiffeomorphicDemonsRegistrationFilter from coarse to fine, after our alignment.

    Ours, as ITK has no default settings for whole images: shrink factors 4, 2, 1 with 60, 40 and
    20 iterations; a Gaussian of half the factor (in fine voxels) before shrinking; the field, but
    not the updates, smoothed by 1.5 voxels after each iteration; steps of at most 2 voxels; the
    moving histogram matched to the fixed one first (256 bins, 16 points, above the mean)."""

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, _run_demons)


def _run_demons(fixed_values: NDArray, moving_values: NDArray, grid: Grid) -> NDArray:
    """Run on images without origin or direction, so that components are along array axes."""
    import SimpleITK as sitk

    fixed, moving = itk_image(fixed_values, grid), itk_image(moving_values, grid)
    moving = sitk.HistogramMatching(moving, fixed, 256, 16, True)
    field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64)  # zero displacement
    field.CopyInformation(fixed)
    for factor, iterations in LEVELS:
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(SMOOTHING)
        demons.SetMaximumUpdateStepLength(2.0)
        small, other = _shrink(fixed, factor), _shrink(moving, factor)
        field = demons.Execute(small, other, _resample_field(field, small))
    vectors = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3)
    return np.ascontiguousarray(vectors / np.asarray(grid.spacing))


def _resample_field(field: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """Resample a field to a finer grid; beyond the outer voxels by nearest neighbour."""
    import SimpleITK as sitk

    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(reference)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetUseNearestNeighborExtrapolator(True)
    return resampler.Execute(field)


def _shrink(image: sitk.Image, factor: int) -> sitk.Image:
    import SimpleITK as sitk

    factors = [min(factor, max(1, n // MIN_SIZE)) for n in image.GetSize()]
    if max(factors) == 1:
        return image
    variance = [
        (f / 2 * s) ** 2 if f > 1 else 0.0 for f, s in zip(factors, image.GetSpacing(), strict=True)
    ]
    return sitk.Shrink(sitk.DiscreteGaussian(image, variance), factors)


def itk_image(values: NDArray, grid: Grid) -> sitk.Image:
    """An ITK image with a grid's spacing, without its origin and direction."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(
        np.ascontiguousarray(values.transpose(2, 1, 0), dtype=np.float32)
    )
    image.SetSpacing([float(s) for s in grid.spacing])
    return image


ITERATIONS = "100x50x20"
RADIUS = "2x2x2"  # voxels; patch radius of the normalised cross-correlation


@dataclass(frozen=True)
class Greedy:
    """Greedy's deformable mode after our alignment: NCC of 5x5x5 patches, default smoothing.

    Ours, as its documentation advises for brains: 100, 50 and 20 iterations at a quarter, half and
    full resolution; default smoothing (1.732 voxels for the update, 0.7071 for the field).
    """

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, _run_greedy)


def _run_greedy(fixed: NDArray, moving: NDArray, grid: Grid) -> NDArray:
    """Run on images without origin or direction, so that components are along array axes."""
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()
    images = {"fixed": itk_image(fixed, grid), "moving": itk_image(moving, grid)}
    greedy.execute(
        f"-V 0 -i fixed moving -m NCC {RADIUS} -n {ITERATIONS} -o warp", warp=None, **images
    )
    vectors = sitk.GetArrayFromImage(greedy["warp"]).transpose(2, 1, 0, 3)
    return np.ascontiguousarray(vectors / np.asarray(grid.spacing))


# signs along the array axes of an image that ITK writes with the axes L, P and S
RAS = (-1.0, -1.0, 1.0)


@dataclass(frozen=True)
class NiftyReg:
    """``reg_f3d`` with its defaults after our alignment.

    In version 1.5: cubic B-splines with 5 voxels between control points, normalised mutual
    information with 64 bins, weights 0.001 for bending energy and 0.01 for linear energy, three
    levels of at most 600, 300 and 150 iterations, no velocity field.  It uses as many threads as
    PyTorch.  The programs exchange files in a temporary folder, which the time includes.  Tested
    with version 1.5.70, built from source.

    Raises
    ------
    RuntimeError
        From `run`, if one of the programs fails; ends with the last part of its output.
    """

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, _run_niftyreg)


def _run_niftyreg(fixed: NDArray, moving: NDArray, grid: Grid) -> NDArray:
    """Run on images without origin or direction, so that components are along array axes."""
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as folder:
        for name, values in (("fixed", fixed), ("moving", moving)):
            sitk.WriteImage(itk_image(values, grid), str(Path(folder) / f"{name}.nii"))
        _run(folder, "reg_f3d -ref fixed.nii -flo moving.nii -cpp cpp.nii -res warped.nii")
        _run(folder, "reg_transform -ref fixed.nii -disp cpp.nii disp.nii")
        vectors = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(folder) / "disp.nii"))).transpose(
            2, 1, 0, 3
        )
    return np.ascontiguousarray(vectors * RAS / np.asarray(grid.spacing))


def _run(folder: str, command: str) -> None:
    """Run a program in a folder.

    The number of threads is set by a variable, as builds without OpenMP reject -omp.
    """
    words, environment = (
        command.split(),
        os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    process = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
    )
    if process.returncode != 0:
        output = " ".join((process.stderr or process.stdout).split())[-500:]
        raise RuntimeError(
            f"{words[0]} ended with code {process.returncode}: {output or 'no output'}"
        )


@dataclass(frozen=True)
class ConvexAdam:
    """``convexAdam.convex_adam_MIND.convex_adam_pt`` with its defaults, after our alignment.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        "auto" uses a GPU if available, as the package itself does.
    """

    device: str = "auto"

    def run(self, pair: VolumePair) -> DisplacementField:
        """Alignment and deformation, composed."""
        return deform_aligned(pair, self._deform)

    def _deform(self, fixed: NDArray, moving: NDArray, grid: Grid) -> NDArray:
        from convexAdam.convex_adam_MIND import convex_adam_pt

        return np.asarray(convex_adam_pt(fixed, moving, device=find_device(self.device)))


OWN = (*NETWORKS, "affine+refine", "affine", START)


def registration_settings(name: str, settings: Mapping[str, Any]) -> RegistrationSettings:
    """Make the registration settings of one of our own methods.

    Parameters
    ----------
    name : str
        One of `NETWORKS` or `REFINED`; the latter refine, by default with `DEFAULT_STEPS`.
    settings : mapping
        Fields of `RegistrationSettings`; others are ignored, and so is the similarity without
        refinement.

    Raises
    ------
    InputError
        If a setting is invalid.
    """
    own = {f.name: settings[f.name] for f in fields(RegistrationSettings) if f.name in settings}
    own["refine"] = own.get("refine") or (DEFAULT_STEPS if name in REFINED else 0)
    if not own["refine"]:
        own.pop("similarity", None)
    if name in SMOOTHER:
        own["smoothness"] = SMOOTHER[name]
    return RegistrationSettings(**own)


def evaluated_method(
    name: str, settings: Mapping[str, Any], network: SHMoAReg | None = None
) -> EvaluatedMethod:
    """Prepare a method of `napari_shmoareg.evaluation.methods.METHODS`.

    Parameters
    ----------
    name : str
    settings : mapping
        As for `registration_settings`, and the options of the baseline, such as
        "unigradicon_weights", a file.
    network : SHMoAReg, optional
        For the methods in `NETWORKS`.

    Raises
    ------
    InputError
        If the method is unknown or not installed.
    """
    if name in (*NETWORKS, *REFINED):
        if network is None and name in NETWORKS:
            raise ValueError(f"the method '{name}' needs a network")
        own = registration_settings(name, settings)
        import_modules(name)

        def run(pair: VolumePair) -> MethodResult:
            found = register(pair, network if name in NETWORKS else None, own)
            seconds = sum(found.seconds.get(phase, 0.0) for phase in ("network", "refine"))
            matrix, warnings = found.alignment.matrix, tuple(found.warnings)
            return MethodResult(found.displacement, matrix, warnings, seconds)

        return run
    if name == "affine":
        import_modules(name)

        def run_affine(pair: VolumePair) -> MethodResult:
            matrix = align(pair, settings["affine"]).matrix
            return MethodResult(Transform(matrix).total(pair.fixed.grid), matrix)

        return run_affine
    check_available(name)
    baseline = load_method(name, **{option: settings[option] for option in METHODS[name].options})
    return lambda pair: MethodResult(baseline.run(pair))
