"""The registration methods that can be compared, by name; changed contrasts.  Loads no method."""

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
    from napari_shmoareg.evaluation.baselines import Method


CHANGES = ("none", "invert", "gamma")
GAMMA = 0.5
SURROUNDS = 0.05  # share of the voxels from which on the lowest value is background


def change_contrast(volume: Volume, change: str, gamma: float = GAMMA) -> Volume:
    """An image with other intensities at the same places.

    Parameters
    ----------
    volume : Volume
    change : {"none", "invert", "gamma"}
        "invert" turns bright and dark round, v -> max + min - v, within the content.
        Ours: where the lowest value fills at least 5 % of the image (the 0 around a skull-stripped
        brain), it is background and stays what it is, and the content is the rest; elsewhere the
        whole image is turned.
        "gamma" scales to [0, 1], takes the power, and scales back.
    gamma : float
        The exponent; below 1 brightens.

    Returns
    -------
    Volume
        float32, the same range of values; "none" gives the volume itself.

    Raises
    ------
    InputError
        If there is no such change, or the exponent is not positive.
    """
    if change not in CHANGES:
        raise InputError(f"The change is one of {', '.join(CHANGES)}; got {change!r}.")
    if not (gamma > 0 and np.isfinite(gamma)):
        raise InputError(f"The exponent of a gamma is a positive number; got {gamma}.")
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
    'pip install "shmoareg[peers]". Use a virtual environment of its own for it, as antspyx holds'
    " numpy below 2.4."
)


class Baseline(NamedTuple):
    """What is known of a method before it is loaded.

    Attributes
    ----------
    home : str
        Its class, "SyN"; "register" for those that `register` does.
    imports : tuple of str
        What it uses beyond our own, down to the module, so that no import is left for its run.
    distribution : str or None
        How pip calls the optional one of them.
    says : str
        What it is, for people.
    options : tuple of str
        The settings that its class takes, of those of peers.
    programs : tuple of str
        What it runs, by their names on the PATH.
    source : str
        Where what it needs comes from.
    """

    home: str
    imports: tuple[str, ...]
    distribution: str | None
    says: str
    options: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    source: str = EXTRA


METHODS = {
    START: Baseline("Start", (), None, "the headers alone"),
    "affine": Baseline("Affine", ("SimpleITK",), None, "our alignment alone, mode auto"),
    "affine+refine": Baseline(
        "register",
        ("SimpleITK",),
        None,
        "our alignment, then the refinement on the pair: no network",
    ),
    "shmoareg": Baseline(
        "register", ("SimpleITK",), None, "our alignment, then the network's passes"
    ),
    "shmoareg+refine": Baseline(
        "register", ("SimpleITK",), None, "the same, then refined on the pair"
    ),
    "syn": Baseline(
        "SyN", ("ants",), "antspyx", "ANTs SyN with its own affine, antspyx's defaults"
    ),
    "greedy": Baseline(
        "Greedy",
        ("SimpleITK", "picsl_greedy"),
        "picsl_greedy",
        "our alignment, then greedy's deformable mode by NCC of 5x5x5 patches, 100x50x20"
        " iterations",
    ),
    "demons": Baseline(
        "Demons",
        ("SimpleITK",),
        None,
        "our alignment, then ITK's diffeomorphic demons; the set-up (levels, iterations, smoothing)"
        " is ours, and its histogram matching cannot follow an inverted contrast",
    ),
    "convexadam": Baseline(
        "ConvexAdam",
        ("SimpleITK", "convexAdam.convex_adam_MIND"),
        "convexAdam",
        "our alignment, then ConvexAdam's defaults, on the fixed image's own voxels",
        ("device",),
    ),
    "unigradicon": Baseline(
        "UniGradICON",
        ("SimpleITK", "icon_registration.networks"),
        "icon_registration",
        "our alignment, then uniGradICON's network on 175x175x175 voxels, with weights that the"
        " user gave and without its instance optimisation",
        ("unigradicon_weights", "device"),
        source=(
            "pip install icon_registration. It brings ITK and torchvision: use a virtual"
            " environment of its own."
        ),
    ),
    "niftyreg": Baseline(
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
"""Those whose refinement ends after the seconds that another method's deformation took on the same
pair.
"""

METHODS |= {
    timed: Baseline(
        "register",
        ("SimpleITK",),
        None,
        f"affine+refine, its refinement ended after the seconds that {name} took to deform the same"
        " pair",
    )
    for timed, name in TIMED.items()
}

SMOOTHER = {f"affine+refine:{name}": name for name in ("balanced", "smooth")}
"""Those that refine with a smoothness of their own: with affine+refine, the curve of accuracy over
regularity.
"""

METHODS |= {
    method: Baseline("register", ("SimpleITK",), None, f"affine+refine at the smoothness {name}")
    for method, name in SMOOTHER.items()
}

NETWORKS = ("shmoareg", "shmoareg+refine")
"""Those that need weights."""

REFINED = ("affine+refine", *TIMED, *SMOOTHER, "shmoareg+refine")
"""Those that refine on the pair."""


def check_available(name: str) -> None:
    """Refuse a method that is not known, or whose package or programs are not installed.

    Raises
    ------
    InputError
        With what to do.
    """
    if name not in METHODS:
        raise InputError(f"There is no method '{name}'; the methods are {', '.join(METHODS)}.")
    peer = METHODS[name]
    missing = [module for module in peer.imports if find_spec(module.partition(".")[0]) is None]
    if missing:
        raise InputError(
            f"The method '{name}' needs the package {peer.distribution or missing[0]}, which is not"
            f" installed: {peer.source}"
        )
    absent = [program for program in peer.programs if which(program) is None]
    if absent:
        raise InputError(
            f"The method '{name}' runs {' and '.join(peer.programs)}, but there is no"
            f" {' and no '.join(absent)} on the PATH: {peer.source}"
        )


def used_versions(name: str) -> dict[str, str]:
    """Versions of the optional package and of the programs that a method uses, by name."""
    peer, found = METHODS[name], {}
    if peer.distribution is not None:
        try:
            found[peer.distribution] = version(peer.distribution)
        except PackageNotFoundError:
            found[peer.distribution] = "unknown"
    for program in peer.programs:
        said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split()
        found[program] = said[-1] if said else "unknown"
    return found


def import_modules(name: str) -> None:
    """Import all that a method uses, so that no import is left for its run."""
    for module in METHODS[name].imports:
        import_module(module)


def load_method(name: str, **options: object) -> Method:
    """A method that has a class of its own, with all that it imports already imported.

    Parameters
    ----------
    name : str
        One of `METHODS`; those that `register` does are made by `evaluated_method`.
    **options
        Those of the method's class.

    Raises
    ------
    InputError
        As `check_available`.
    """
    check_available(name)
    import_modules(name)
    baselines = import_module("napari_shmoareg.evaluation.baselines")
    made: Method = getattr(baselines, METHODS[name].home)(**options)
    return made
