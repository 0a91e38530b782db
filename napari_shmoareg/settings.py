"""Settings of a registration; choices, rules and help texts of any settings class.

One docstring gives the reference, the tooltips of a form, the command's help and the manifest.
"""

from __future__ import annotations

import inspect
from dataclasses import Field, dataclass, fields
from functools import cache
from numbers import Integral
from typing import Any, Literal, get_args, get_origin, get_type_hints

from napari_shmoareg.errors import InputError


@cache
def described(settings: Any) -> dict[str, str]:
    """Field to words, in the order of the docstring; then those of the classes that it builds on.

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


def own_first(settings: type[Any]) -> list[Field[Any]]:
    """The fields of a dataclass: its own, then those of the classes that it builds on."""
    inherited = {
        name for part in settings.__mro__[1:] for name in getattr(part, "__dataclass_fields__", ())
    }
    return sorted(fields(settings), key=lambda field: field.name in inherited)


Rule = tuple[bool, str, str]  # whether it holds, the setting, what it must be


@cache
def choices(settings: Any) -> dict[str, tuple[str, ...]]:
    """The words of every setting whose type is a Literal of such.

    Parameters
    ----------
    settings : type
        A dataclass.
    """
    hints = get_type_hints(settings)
    return {
        field.name: get_args(hints[field.name])
        for field in own_first(settings)
        if get_origin(hints[field.name]) is Literal
    }


def check_choice(settings: Any, name: str, value: object) -> None:
    """Refuse a word that is none of a setting's choices.

    Raises
    ------
    InputError
        With the setting's name, its choices and the value.
    """
    words = choices(settings)[name]
    if value not in words:
        listed = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
        raise InputError(f"must be {listed}; got {value!r}.", setting=name)


def check_rules(settings: object, *rules: Rule) -> None:
    """Refuse the first setting that is none of its choices, or whose rule does not hold.

    Raises
    ------
    InputError
        With the setting's name, what it must be and what it is.
    """
    kind: Any = type(settings)
    for name in choices(kind):
        check_choice(kind, name, getattr(settings, name))
    for holds, name, wanted in rules:
        if not holds:
            value = getattr(settings, name)
            raise InputError(f"must be {wanted}; got {value!r}.", setting=name)


AffineMode = Literal["auto", "rigid", "affine", "none"]
Device = Literal["auto", "cpu", "cuda"]
SMALLEST_SIZE = 8  # voxels along the longest axis of a network grid


@dataclass(frozen=True, kw_only=True)
class RegistrationSettings:
    """How a pair is registered; `register` takes them, and the command and the panel ask for them.

    Parameters
    ----------
    affine : {"auto", "rigid", "affine", "none"}
        How the pair is aligned before the network sees it. auto looks whether that is needed; none
        trusts the headers, that is, where the images stand now.
    diffeomorphic : bool or None
        Integrate the deformation, so that it hardly folds and can be undone; otherwise it is taken
        as the network gives it. By default as the weights say; without a network, diffeomorphic.
    refine : int
        Steps by which the deformation is refined on this pair itself, after the network, coarse to
        fine; 0 for none. 60 are a good number.
    similarity : {"auto", "lncc", "mind"}
        What the refinement compares by: lncc is local correlation; mind is self-similarity, for
        images of unlike contrast. auto looks at the pair.
    contrast : {"auto", "keep", "match"}
        match shows the network the moving image in the fixed image's contrast, keep as it is. auto
        matches where the two clearly differ. The result keeps the moving image's own values.
    size : int, "native" or None
        Voxels along the longest axis of the grid that the network sees; more show it finer detail
        and need more memory. native is the fixed image's own grid. By default what the weights are
        meant for, 160 without a network. The result always stands on the fixed image's own grid.
    smoothness : {"accurate", "balanced", "smooth"}
        Of the deformation, the network's and the refinement's. What is smoother overlaps a little
        less and folds less.
    keep : {"best", "last"}
        best keeps the stage under which the images agree best: headers, alignment, network or
        refinement; last keeps the last of them in any case.
    device : {"auto", "cpu", "cuda"}
        Where the network runs. auto takes an NVIDIA GPU where there is one.
    refine_seconds : float or None
        Seconds after which the refinement ends; the result then depends on the machine's speed.

    Raises
    ------
    InputError
        If a value is not what it has to be.
    """

    affine: AffineMode = "auto"
    diffeomorphic: bool | None = None
    refine: int = 0
    similarity: Literal["auto", "lncc", "mind"] = "auto"
    contrast: Literal["auto", "keep", "match"] = "auto"
    size: int | Literal["native"] | None = None
    smoothness: Literal["accurate", "balanced", "smooth"] = "accurate"
    keep: Literal["best", "last"] = "best"
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
        if self.refine == 0 and self.similarity != "auto":
            raise InputError(
                f"is what a refinement compares by, and none was asked for; got"
                f" {self.similarity!r}.",
                setting="similarity",
                remedy="Give {refine:60} too, or leave it out.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values of a registration, as a report has them."""
        return {name: getattr(self, name) for name in REPORTED}


REPORTED = tuple(f.name for f in fields(RegistrationSettings) if f.name != "refine_seconds")


@dataclass(frozen=True, kw_only=True)
class RegistrationRequest(RegistrationSettings):
    """The settings of a registration, and the weights of the network that deforms.

    Parameters
    ----------
    weights : str
        Which trained network registers: shipped weights by name, or a .safetensors file of your
        own. auto takes the shipped ones that fit the device, none registers without a network.
    """

    weights: str = "auto"


def check_size(size: Any) -> None:
    """Refuse what is no size of a network grid.

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


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
