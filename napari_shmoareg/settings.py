"""Settings of a registration; choices, checks and help texts of any settings class.

The docstring of a settings class is also the source of tooltips, command help and the manifest.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import Field, dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from napari_shmoareg.errors import InputError


@cache
def help_texts(settings: Any) -> dict[str, str]:
    """Map each field to its help text, in the order of the docstring; inherited fields come last.

    Parameters
    ----------
    settings : type
        A dataclass whose docstring has a numpydoc section "Parameters".
    """
    found: dict[str, str] = {}
    for part in settings.__mro__:
        if "__dataclass_fields__" not in vars(part):
            continue
        name = ""
        for line in inspect.cleandoc(part.__doc__ or "").split("----------")[-1].splitlines():
            if line and not line.startswith(" "):
                name = line.split(" : ")[0]
            elif line and name in vars(part)["__dataclass_fields__"]:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def own_fields_first(settings: type[Any]) -> list[Field[Any]]:
    """Return the fields of a dataclass: its own, then the inherited ones."""
    inherited = {
        name for part in settings.__mro__[1:] for name in getattr(part, "__dataclass_fields__", ())
    }
    return sorted(fields(settings), key=lambda field: field.name in inherited)


Rule = tuple[bool, str, str]  # whether it is met, the setting, the requirement


@cache
def choices(settings: Any) -> dict[str, tuple[str, ...]]:
    """Return the allowed values of every setting whose type is a `Literal`.

    Parameters
    ----------
    settings : type
        A dataclass.
    """
    hints = get_type_hints(settings)
    return {
        field.name: get_args(hints[field.name])
        for field in own_fields_first(settings)
        if get_origin(hints[field.name]) is Literal
    }


def check_choice(settings: Any, name: str, value: object) -> None:
    """Check that a value is one of a setting's choices.

    Raises
    ------
    InputError
        With the setting's name, its choices and the value.
    """
    allowed = choices(settings)[name]
    if value not in allowed:
        listed = f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"
        raise InputError(f"must be {listed}; got {value!r}.", setting=name)


def check_rules(settings: object, *rules: Rule) -> None:
    """Check all settings with fixed choices, then the rules, in order.

    Raises
    ------
    InputError
        For the first invalid setting, with its name, the requirement and the value.
    """
    kind: Any = type(settings)
    for name in choices(kind):
        check_choice(kind, name, getattr(settings, name))
    for valid, name, requirement in rules:
        if not valid:
            value = getattr(settings, name)
            raise InputError(f"must be {requirement}; got {value!r}.", setting=name)


AffineMode = Literal["auto", "rigid", "affine", "none"]
Device = Literal["auto", "cpu", "cuda"]
SMALLEST_SIZE = 8  # voxels along the longest axis of a network grid


@dataclass(frozen=True, kw_only=True)
class RegistrationSettings:
    """Settings of `register`, of the command ``register`` and of the Register panel.

    Parameters
    ----------
    affine : {"auto", "rigid", "affine", "none"}
        Alignment of the pair before the network. auto checks whether it is needed; none trusts the
        headers, that is, the current positions of the images.
    diffeomorphic : bool or None
        Integrate the deformation, so that it is invertible and hardly folds; otherwise use the
        network's output directly. Default: as set in the weights; without a network, diffeomorphic.
    refine : int
        Number of optimisation steps that refine the deformation on this pair after the network,
        coarse to fine; 0 for none. 60 is a good value.
    similarity : {"auto", "lncc", "mind"}
        Similarity metric of the refinement: lncc is local correlation; mind is self-similarity, for
        images of different contrast. auto decides from the pair.
    contrast : {"auto", "keep", "match"}
        match gives the network the moving image in the fixed image's contrast, keep leaves it
        unchanged. auto matches if the two clearly differ. The result has the original intensities.
    size : int, "native" or None
        Voxels along the longest axis of the network grid; more voxels resolve finer detail and need
        more memory. native is the fixed image's own grid. Default: the size that the weights are
        meant for; 160 without a network. The result is always on the fixed image's own grid.
    smoothness : {"accurate", "balanced", "smooth"}
        Smoothness of the deformation, of both network and refinement. A smoother deformation
        overlaps labels slightly less and folds less.
    keep : {"best", "last"}
        best keeps the stage at which the images agree best: headers, alignment, network or
        refinement; last always keeps the last stage.
    fill : {"auto", "minimum", "air"} or float
        Value of the warped image where the moving image has no voxels. auto is the value at its
        border if that is empty space, else -1000 (air) for a CT and the minimum for other images.
    device : {"auto", "cpu", "cuda"}
        Where the network runs. auto uses an NVIDIA GPU if one is available.
    refine_seconds : float or None
        Time limit of the refinement; the result then depends on the speed of the machine.

    Raises
    ------
    InputError
        If a value is not valid.
    """

    affine: AffineMode = "auto"
    diffeomorphic: bool | None = None
    refine: int = 0
    similarity: Literal["auto", "lncc", "mind"] = "auto"
    contrast: Literal["auto", "keep", "match"] = "auto"
    size: int | Literal["native"] | None = None
    smoothness: Literal["accurate", "balanced", "smooth"] = "accurate"
    keep: Literal["best", "last"] = "best"
    fill: float | Literal["auto", "minimum", "air"] = "auto"
    device: Device = "auto"
    refine_seconds: float | None = None

    def __post_init__(self) -> None:
        check_rules(
            self,
            (
                _is_whole(self.refine) and self.refine >= 0,
                "refine",
                "a whole number of steps, 0 for none",
            ),
            (self.diffeomorphic in (None, True, False), "diffeomorphic", "True, False or None"),
        )
        if self.refine_seconds is not None and not self.refine_seconds >= 0:
            raise InputError(
                f"must be at least 0; got {self.refine_seconds!r}.", setting="refine_seconds"
            )
        if self.size is not None:
            check_size(self.size)
        check_fill(self.fill)
        if self.refine == 0 and self.similarity != "auto":
            raise InputError(
                f"applies to the refinement, but none was requested; got {self.similarity!r}.",
                setting="similarity",
                remedy="Give {refine:60} too, or leave it out.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values, as in report.json."""
        return {name: getattr(self, name) for name in REPORTED}


REPORTED = tuple(f.name for f in fields(RegistrationSettings) if f.name != "refine_seconds")


@dataclass(frozen=True, kw_only=True)
class RegistrationRequest(RegistrationSettings):
    """The settings of a registration and the weights of the network.

    Parameters
    ----------
    weights : str
        Weights of the network: the name of shipped weights, or a .safetensors file of your own.
        auto picks the shipped weights that suit the device; none registers without a network.
    """

    weights: str = "auto"


def check_size(size: Any) -> None:
    """Check the size of a network grid.

    Raises
    ------
    InputError
        If `size` is neither "native" nor a whole number of at least 8.
    """
    if size != "native" and not (_is_whole(size) and size >= SMALLEST_SIZE):
        raise InputError(
            f"must be 'native' or at least {SMALLEST_SIZE} voxels along the longest axis; got"
            f" {size!r}.",
            setting="size",
        )


FILLS = ("auto", "minimum", "air")


def check_fill(fill: Any) -> None:
    """Check the value of a warped image outside the moving image.

    Raises
    ------
    InputError
        If `fill` is neither "auto", "minimum", "air" nor a finite number.
    """
    is_number = isinstance(fill, Real) and not isinstance(fill, bool)
    if fill not in FILLS and not (is_number and math.isfinite(float(fill))):
        raise InputError(
            f"must be 'auto', 'minimum', 'air' or a finite number; got {fill!r}.", setting="fill"
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
