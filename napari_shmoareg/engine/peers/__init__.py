"""Registration methods behind one face, to be compared on the same pairs.

Each takes a pair and gives the displacement of its whole transform on the fixed grid, in mm RAS,
so that one scorer serves all.  The peers' packages are optional and imported when they are used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from napari_shmoareg.geometry import InputError

if TYPE_CHECKING:
    from napari_shmoareg.engine.peers.methods import Method

START = "start"


class Peer(NamedTuple):
    """What is known of a method before it is loaded.

    Attributes
    ----------
    home : str
        The file and the class, "syn.SyN".
    imports : tuple of str
        What it uses beyond our own, down to the module, so that no import is left for its run.
    distribution : str or None
        How pip calls the optional one of them.
    says : str
        What it is, for people.
    """

    home: str
    imports: tuple[str, ...]
    distribution: str | None
    says: str


METHODS = {
    START: Peer("methods.Start", (), None, "the headers alone"),
    "affine": Peer("methods.Affine", ("SimpleITK",), None, "our alignment alone, mode auto"),
    "affine+refine": Peer(
        "methods.Registered", ("SimpleITK",), None, "our alignment, then the refinement on the pair: no network"
    ),
    "shmoareg": Peer("methods.Registered", ("SimpleITK",), None, "our alignment, then the network's passes"),
    "shmoareg+refine": Peer("methods.Registered", ("SimpleITK",), None, "the same, then refined on the pair"),
    "syn": Peer("syn.SyN", ("ants",), "antspyx", "ANTs SyN with its own affine, antspyx's defaults"),
    "greedy": Peer(
        "greedy.Greedy",
        ("SimpleITK", "picsl_greedy"),
        "picsl_greedy",
        "our alignment, then greedy's deformable mode by NCC of 5x5x5 patches, 100x50x20 iterations",
    ),
    "demons": Peer(
        "demons.Demons",
        ("SimpleITK",),
        None,
        "our alignment, then ITK's diffeomorphic demons; the set-up (levels, iterations, smoothing) is ours, and its "
        "histogram matching cannot follow an inverted contrast",
    ),
    "convexadam": Peer(
        "convexadam.ConvexAdam",
        ("SimpleITK", "convexAdam.convex_adam_MIND"),
        "convexAdam",
        "our alignment, then ConvexAdam's defaults, on the fixed image's own voxels",
    ),
}
"""All methods by name; `start` is always scored."""

TIMED = {f"affine+refine@{name}": name for name in ("shmoareg", "shmoareg+refine")}
"""Those whose refinement ends after the seconds that another method's deformation took on the same pair."""

METHODS |= {
    timed: Peer(
        "methods.Registered",
        ("SimpleITK",),
        None,
        f"affine+refine, its refinement ended after the seconds that {name} took to deform the same pair",
    )
    for timed, name in TIMED.items()
}

SMOOTHER = {f"affine+refine:{name}": name for name in ("balanced", "smooth")}
"""Those that refine with a smoothness of their own: with affine+refine, the curve of accuracy over regularity."""

METHODS |= {
    method: Peer("methods.Registered", ("SimpleITK",), None, f"affine+refine at the smoothness {name}")
    for method, name in SMOOTHER.items()
}

NETWORKS = ("shmoareg", "shmoareg+refine")
"""Those that need weights."""

REFINED = ("affine+refine", *TIMED, *SMOOTHER, "shmoareg+refine")
"""Those that refine on the pair."""


def check_available(name: str) -> None:
    """Refuse a method that is not known or whose package is not installed.

    Raises
    ------
    InputError
        With the command that installs it.
    """
    if name not in METHODS:
        raise InputError(f"There is no method '{name}'; the methods are {', '.join(METHODS)}.")
    missing = [module for module in METHODS[name].imports if find_spec(module.partition(".")[0]) is None]
    if missing:
        raise InputError(
            f"The method '{name}' needs the package {METHODS[name].distribution or missing[0]}, which is not "
            'installed: pip install "shmoareg[peers]". Use a virtual environment of its own for it, as antspyx holds '
            "numpy below 2.4."
        )


def load_method(name: str, **options: object) -> Method:
    """A method, with all that it imports already imported.

    Parameters
    ----------
    name : str
        One of `METHODS`.
    **options
        Those of the method's class.

    Raises
    ------
    InputError
        As `check_available`.
    """
    check_available(name)
    for module in METHODS[name].imports:
        import_module(module)
    file, kind = METHODS[name].home.split(".")
    made: Method = getattr(import_module(f"{__name__}.{file}"), kind)(**options)
    return made
