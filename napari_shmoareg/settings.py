"""Settings: rules, help texts from docstrings, and those of a registration.

One docstring gives the reference, the tooltips of a form, the command's help and the run file.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, fields
from functools import cache
from typing import Any

from napari_shmoareg.errors import InputError


@cache
def described(settings: type[Any]) -> dict[str, str]:
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
            elif line:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def own_first(settings: type[Any]) -> list[Field[Any]]:
    """The fields of a dataclass: its own, then those of the classes that it builds on."""
    inherited = {
        name for part in settings.__mro__[1:] for name in getattr(part, "__dataclass_fields__", ())
    }
    return sorted(fields(settings), key=lambda field: field.name in inherited)


Rule = tuple[bool, str, str]  # whether it holds, the setting, what it must be


def check_rules(settings: object, *rules: Rule) -> None:
    """Refuse the first setting whose rule does not hold.

    Raises
    ------
    InputError
        With the setting's name, what it must be and what it is.
    """
    for holds, name, wanted in rules:
        if not holds:
            raise InputError(f"{name} must be {wanted}; got {getattr(settings, name)!r}.")


AS_WEIGHTS = "as the weights say"
NATIVE = "native"
SMALLEST, LARGEST = 16, 1024  # voxels along the longest axis that the form offers
MOST_STEPS = 1000
VARIANTS: dict[str, bool | None] = {
    AS_WEIGHTS: None,
    "diffeomorphic": True,
    "not diffeomorphic": False,
}
LABELS = {  # in the order of the form
    "weights": "Weights",
    "affine": "Alignment",
    "diffeomorphic": "Deformation",
    "refine": "Refine",
    "similarity": "Similarity",
    "contrast": "Contrast",
    "size": "Size",
    "smoothness": "Smoothness",
    "keep": "Keep",
    "device": "Device",
}
CHOICES = {
    "affine": ("auto", "rigid", "affine", "none"),
    "diffeomorphic": tuple(VARIANTS),
    "device": ("auto", "cpu", "cuda"),
    "similarity": ("auto", "lncc", "mind"),
    "contrast": ("auto", "keep", "match"),
    "smoothness": ("accurate", "balanced", "smooth"),
    "keep": ("best", "last"),
}
PRESETS: dict[str, dict[str, Any]] = {  # weights and device stay as they are
    "Quick": {},
    "Refined": {"refine": 60},
    "Unlike contrasts": {"refine": 60, "similarity": "mind"},
    "Headers are right": {"affine": "none"},
}


@dataclass(frozen=True)
class Settings:
    """What a person can choose; the form's tooltips are these words.

    Parameters
    ----------
    weights : str
        Which trained network registers: shipped weights by name, or a .safetensors file of your
        own. auto takes the shipped ones that fit the device, none registers without a network.
    affine : {"auto", "rigid", "affine", "none"}
        How the pair is aligned before the network sees it. auto looks whether that is needed; none
        trusts the headers, that is, where the layers stand now.
    diffeomorphic : bool or None
        Diffeomorphic integrates the deformation, so that it hardly folds and can be undone;
        otherwise it is taken as the network gives it.
    device : {"auto", "cpu", "cuda"}
        Where the network runs. auto takes an NVIDIA GPU where there is one.
    size : int, "native" or None
        Voxels along the longest axis of the grid that the network sees; more show it finer detail
        and need more memory. native is the fixed image's own grid. The result always stands on the
        fixed image's own grid.
    refine : int
        Steps by which the deformation is refined on this pair itself, after the network; 0 for
        none. 60 are a good number.
    similarity : {"auto", "lncc", "mind"}
        What the refinement compares by: lncc is local correlation; mind is self-similarity, for
        images of unlike contrast. auto looks at the pair.
    contrast : {"auto", "keep", "match"}
        match shows the network the moving image in the fixed image's contrast, keep as it is. auto
        matches where the two clearly differ. The result keeps the moving image's own values.
    smoothness : {"accurate", "balanced", "smooth"}
        Of the deformation. What is smoother overlaps a little less and folds less.
    keep : {"best", "last"}
        best keeps the stage under which the images agree best: headers, alignment, network or
        refinement; last keeps the last of them in any case.
    """

    weights: str = "auto"
    affine: str = "auto"
    diffeomorphic: bool | None = None
    device: str = "auto"
    size: int | str | None = None
    refine: int = 0
    similarity: str = "auto"
    contrast: str = "auto"
    smoothness: str = "accurate"
    keep: str = "best"

    def to_words(self) -> dict[str, str | int]:
        """As the preferences keep it: text and whole numbers."""
        variant = next(word for word, value in VARIANTS.items() if value is self.diffeomorphic)
        size = AS_WEIGHTS if self.size is None else str(self.size)
        return asdict(self) | {"diffeomorphic": variant, "size": size}

    @classmethod
    def from_words(cls, words: Mapping[str, Any]) -> Settings:
        """The way back; what is missing or not known is as by default."""
        known: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            word = words.get(name)
            if name == "size":
                known[name] = _size(str(word))
            elif name == "refine":
                if isinstance(word, int) and 0 <= word <= MOST_STEPS:
                    known[name] = word
            elif name == "weights":
                known[name] = str(word or "auto")
            elif word in CHOICES[name]:
                known[name] = VARIANTS[str(word)] if name == "diffeomorphic" else word
        return cls(**known)

    def with_preset(self, name: str) -> Settings:
        """One of `PRESETS`, on these weights and this device."""
        return Settings(weights=self.weights, device=self.device, **PRESETS[name])

    @property
    def preset(self) -> str | None:
        """Which of `PRESETS` these settings are; None for none of them."""
        return next((name for name in PRESETS if self.with_preset(name) == self), None)


def _size(word: str) -> int | str | None:
    """A number of voxels or "native"; None for anything else."""
    if word == NATIVE:
        return NATIVE
    return int(word) if word.isdecimal() and SMALLEST <= int(word) <= LARGEST else None
