"""Table of registration methods for comparison; changes of contrast.  Loads no method."""

from __future__ import annotations

import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Volume

if TYPE_CHECKING:
    from napari_shmoareg.evaluation.baselines import Baseline


CHANGES = ("none", "invert", "gamma")
GAMMA = 0.5
SURROUNDS = 0.05  # share of voxels from which the minimum value counts as background


def change_contrast(volume: Volume, change: str, gamma: float = GAMMA) -> Volume:
    """Change the contrast of an image.

    Parameters
    ----------
    volume : Volume
    change : {"none", "invert", "gamma"}
        "invert" swaps bright and dark, v -> max + min - v, within the content.  Ours: if the
        minimum value fills at least 5 % of the image (the 0 around a skull-stripped brain), it is
        background and unchanged, and the rest is content; otherwise the whole image is inverted.
        "gamma" scales to [0, 1], applies the power, and scales back.
    gamma : float
        The exponent; below 1 brightens.

    Returns
    -------
    Volume
        float32, with the same range of values; "none" returns the volume itself.

    Raises
    ------
    InputError
        If the change is unknown, or the exponent is not positive.
    """
    if change not in CHANGES:
        raise InputError(f"The change is one of {', '.join(CHANGES)}; got {change!r}.")
    if not (gamma > 0 and np.isfinite(gamma)):
        raise InputError(f"The exponent gamma is a positive number; got {gamma}.")
    if change == "none":
        return volume
    values = volume.values.astype(np.float32)
    low, high = values.min(), values.max()
    if change == "gamma":
        scaled = (values - low) / max(float(high - low), 1e-30)
        return volume.with_values(low + (high - low) * scaled ** np.float32(gamma))
    return volume.with_values(_inverted(values, low))


def _inverted(values: NDArray[np.float32], low: np.float32) -> NDArray[np.float32]:
    content = values != low
    if content.mean() > 1 - SURROUNDS or not content.any():
        content = np.ones_like(content)
    inner = values[content]
    result = values.copy()
    result[content] = inner.max() + inner.min() - inner
    return result


START = "start"
EXTRA = (
    'pip install "shmoareg[peers]". Use a separate virtual environment, as antspyx requires numpy'
    " below 2.4."
)


class MethodEntry(NamedTuple):
    """Description and requirements of a method.

    Attributes
    ----------
    class_name : str
        Name of its class, such as "SyN"; "register" for methods of `register`.
    imports : tuple of str
        Modules of other packages, imported before the run so that imports are not timed.
    distribution : str or None
        Name of the optional package for pip.
    description : str
        Description for people.
    options : tuple of str
        Settings that its class takes.
    programs : tuple of str
        Programs that it runs, by their names on the PATH.
    source : str
        How to install the requirements.
    """

    class_name: str
    imports: tuple[str, ...]
    distribution: str | None
    description: str
    options: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    source: str = EXTRA


METHODS = {
    START: MethodEntry("Start", (), None, "the headers alone"),
    "affine": MethodEntry("Affine", ("SimpleITK",), None, "our alignment alone, mode auto"),
    "affine+refine": MethodEntry(
        "register",
        ("SimpleITK",),
        None,
        "our alignment, then the refinement on the pair: no network",
    ),
    "shmoareg": MethodEntry(
        "register", ("SimpleITK",), None, "our alignment, then the network's passes"
    ),
    "shmoareg+refine": MethodEntry(
        "register", ("SimpleITK",), None, "the same, then refined on the pair"
    ),
    "syn": MethodEntry(
        "SyN", ("ants",), "antspyx", "ANTs SyN with its own affine, antspyx's defaults"
    ),
    "greedy": MethodEntry(
        "Greedy",
        ("SimpleITK", "picsl_greedy"),
        "picsl_greedy",
        "our alignment, then greedy's deformable mode by NCC of 5x5x5 patches, 100x50x20"
        " iterations",
    ),
    "demons": MethodEntry(
        "Demons",
        ("SimpleITK",),
        None,
        "our alignment, then ITK's diffeomorphic demons with our settings (levels, iterations,"
        " smoothing); its histogram matching does not work with inverted contrast",
    ),
    "convexadam": MethodEntry(
        "ConvexAdam",
        ("SimpleITK", "convexAdam.convex_adam_MIND"),
        "convexAdam",
        "our alignment, then ConvexAdam's defaults, on the fixed image's own voxels",
        ("device",),
    ),
    "unigradicon": MethodEntry(
        "UniGradICON",
        ("SimpleITK", "icon_registration.networks"),
        "icon_registration",
        "our alignment, then uniGradICON's network on 175x175x175 voxels, with weights given by the"
        " user and without instance optimisation",
        ("unigradicon_weights", "device"),
        source=(
            "pip install icon_registration. It also installs ITK and torchvision: use a separate"
            " virtual environment."
        ),
    ),
    "niftyreg": MethodEntry(
        "NiftyReg",
        ("SimpleITK",),
        None,
        "our alignment, then NiftyReg's reg_f3d with its defaults: cubic B-splines 5 voxels apart,"
        " NMI, bending energy",
        programs=("reg_f3d", "reg_transform"),
        source=(
            "install NiftyReg (KCL-BMEIS/niftyreg on GitHub), and add the folder of its programs to"
            " PATH."
        ),
    ),
}
"""All methods by name; `start` is always scored."""

TIMED = {f"affine+refine@{name}": name for name in ("shmoareg", "shmoareg+refine")}
"""Methods with a refinement limited to the seconds of another method's deformation of the pair."""

METHODS |= {
    timed: MethodEntry(
        "register",
        ("SimpleITK",),
        None,
        f"affine+refine, with the refinement stopped after the seconds that {name} took to deform"
        " the same pair",
    )
    for timed, name in TIMED.items()
}

SMOOTHER = {f"affine+refine:{name}": name for name in ("balanced", "smooth")}
"""Methods that refine with another smoothness: a curve of accuracy against regularity."""

METHODS |= {
    method: MethodEntry("register", ("SimpleITK",), None, f"affine+refine at the smoothness {name}")
    for method, name in SMOOTHER.items()
}

NETWORKS = ("shmoareg", "shmoareg+refine")
"""Methods that need weights."""

REFINED = ("affine+refine", *TIMED, *SMOOTHER, "shmoareg+refine")
"""Methods that refine on the pair."""


def check_available(name: str) -> None:
    """Check that a method is known and that its package and programs are installed.

    Raises
    ------
    InputError
        If not, with how to install it.
    """
    if name not in METHODS:
        raise InputError(f"There is no method '{name}'; the methods are {', '.join(METHODS)}.")
    baseline = METHODS[name]
    missing = [module for module in baseline.imports if find_spec(module.partition(".")[0]) is None]
    if missing:
        raise InputError(
            f"The method '{name}' needs the package {baseline.distribution or missing[0]}, which is"
            f" not installed: {baseline.source}"
        )
    missing_programs = [program for program in baseline.programs if which(program) is None]
    if missing_programs:
        raise InputError(
            f"The method '{name}' runs {' and '.join(baseline.programs)}, but there is no"
            f" {' and no '.join(missing_programs)} on the PATH: {baseline.source}"
        )


def used_versions(name: str) -> dict[str, str]:
    """Versions of the optional package and of the programs of a method, by name."""
    baseline, found = METHODS[name], {}
    if baseline.distribution is not None:
        try:
            found[baseline.distribution] = version(baseline.distribution)
        except PackageNotFoundError:
            found[baseline.distribution] = "unknown"
    for program in baseline.programs:
        output = subprocess.run(
            [program, "--version"], capture_output=True, text=True
        ).stdout.split()
        found[program] = output[-1] if output else "unknown"
    return found


def import_modules(name: str) -> None:
    """Import all modules of a method, so that imports are not timed."""
    for module in METHODS[name].imports:
        import_module(module)


def load_method(name: str, **options: object) -> Baseline:
    """Instantiate a method that has its own class; `evaluated_method` makes the others.

    Parameters
    ----------
    name : str
        One of `METHODS`.
    **options
        Options of the class.

    Raises
    ------
    InputError
        As `check_available`.
    """
    check_available(name)
    import_modules(name)
    baselines = import_module("napari_shmoareg.evaluation.baselines")
    method: Baseline = getattr(baselines, METHODS[name].class_name)(**options)
    return method
