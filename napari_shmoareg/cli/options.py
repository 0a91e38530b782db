"""Arguments and options that several commands share, generated from settings classes where they
have one.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

from napari_shmoareg.cli.console import Report, remember_debug
from napari_shmoareg.io.model_card import chosen_device, chosen_weights
from napari_shmoareg.settings import described, own_first
from napari_shmoareg.training.settings import ITERATIONS, ExpertLearning, FineTuning, RunSettings

if TYPE_CHECKING:
    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.register import Registration
    from napari_shmoareg.registration.replay import Replay


class Kind(StrEnum):
    """How a data set lies on the disk."""

    auto = "auto"
    folder = "folder"
    list = "list"
    learn2reg = "learn2reg"
    oasis = "oasis"
    btcv = "btcv"


def parse_window(text: str) -> tuple[float, float]:
    """``--window``: two numbers."""
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not two numbers with a comma, such as -160,240"
        ) from None
    return low, high


class Affine(StrEnum):
    """How the pair is aligned before the network sees it."""

    auto = "auto"
    rigid = "rigid"
    affine = "affine"
    none = "none"


class Device(StrEnum):
    """Where the network runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Similarity(StrEnum):
    """What a refinement compares the images by."""

    auto = "auto"
    lncc = "lncc"
    mind = "mind"


class Contrast(StrEnum):
    """Whether the network sees the moving image in the fixed one's contrast."""

    auto = "auto"
    keep = "keep"
    match = "match"


class Smoothness(StrEnum):
    """Of the deformation."""

    accurate = "accurate"
    balanced = "balanced"
    smooth = "smooth"


class Network(StrEnum):
    """Whether a trained network deforms."""

    auto = "auto"
    none = "none"


class Bfloat16(StrEnum):
    """Whether learning computes in bfloat16."""

    auto = "auto"
    on = "on"
    off = "off"


class Passes(StrEnum):
    """In which passes of the network a control acts."""

    all = "all"
    last = "last"


class Keep(StrEnum):
    """Which stage of a registration is the result."""

    best = "best"
    last = "last"


def parse_size(text: str) -> int | str:
    """``--size``: a number of voxels, or "native"."""
    if text == "native":
        return text
    if text.isdigit():
        return int(text)
    raise typer.BadParameter(f"'{text}' is neither 'native' nor a whole number of voxels")


def parse_number(text: str) -> float:
    """``--nan``: what NaN and infinite voxels are read as."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number - number != 0:
        raise typer.BadParameter(f"'{text}' is not a finite number")
    return number


Moving = Annotated[
    Path,
    typer.Argument(
        metavar="MOVING",
        help=(
            "The image to be deformed (NIfTI, MGH, NRRD, MHA or a DICOM folder; FOLDER#SERIES_UID "
            "picks one of several series, FOLDER#SERIES_UID/2 the second volume of a series)."
        ),
    ),
]
Fixed = Annotated[Path, typer.Argument(metavar="FIXED", help="The image that it is brought onto.")]
MovingLabels = Annotated[
    Path | None,
    typer.Option("--moving-labels", metavar="FILE", help="Label map of MOVING, on the same grid."),
]
FixedLabels = Annotated[
    Path | None,
    typer.Option(
        "--fixed-labels", metavar="FILE", help="Label map of FIXED, to measure the result by."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME|PATH",
        help="Shipped weights by name (`shmoareg info` lists them) or a .safetensors file.",
        show_default="the shipped ones",
    ),
]
UniGradICONWeights = Annotated[
    Path | None,
    typer.Option(
        "--unigradicon-weights",
        metavar="FILE",
        help=(
            "The weights of the method unigradicon, as its authors publish them; they are never"
            " downloaded."
        ),
    ),
]
AffineOption = Annotated[
    Affine,
    typer.Option(
        "--affine",
        help="Alignment beforehand: auto looks whether one is needed, none trusts the headers.",
    ),
]
DiffeomorphicOption = Annotated[
    bool | None,
    typer.Option(
        "--diffeomorphic/--no-diffeomorphic",
        help="Integrate the deformation so that it can be undone.",
        show_default="as the weights say",
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="auto takes a CUDA device if there is one.")
]
Size = Annotated[
    int | None,  # a number or "native": `parse_size`
    typer.Option(
        "--size",
        metavar="N|native",
        parser=parse_size,
        help=(
            "Voxels along the longest axis of the grid that the network sees; native is the fixed"
            " image's own."
        ),
        show_default="as the weights say",
    ),
]
RefineOption = Annotated[
    int,
    typer.Option(
        "--refine",
        metavar="STEPS",
        min=0,
        help=(
            "Refine the deformation on the pair itself for so many steps, coarse to fine; 60 are a"
            " good number."
        ),
    ),
]
SimilarityOption = Annotated[
    Similarity,
    typer.Option(
        "--similarity",
        help=(
            "What --refine compares by: lncc (local correlation), mind (self-similarity); auto"
            " looks at the pair."
        ),
    ),
]
ContrastOption = Annotated[
    Contrast,
    typer.Option(
        "--contrast",
        help=(
            "match shows the network MOVING in FIXED's contrast; auto does so where they clearly"
            " differ."
        ),
    ),
]
SmoothnessOption = Annotated[
    Smoothness,
    typer.Option(
        "--smoothness",
        help=(
            "Of the deformation, the refinement's and the network's: what is smoother overlaps a"
            " little less and folds less."
        ),
    ),
]
NetworkOption = Annotated[
    Network,
    typer.Option(
        "--network",
        help=(
            "none deforms without a trained network: by --refine from the alignment; without"
            " --refine too, the alignment is all."
        ),
    ),
]
KeepOption = Annotated[
    Keep,
    typer.Option(
        "--keep",
        help=(
            "best: of headers, alignment, network and refinement the one under which the images"
            " agree best; last: the last of them in any case."
        ),
    ),
]
Nan = Annotated[
    float | None,
    typer.Option(
        "--nan",
        metavar="VALUE",
        parser=parse_number,
        help="Read NaN and infinite voxels as this value.",
    ),
]
Channel = Annotated[
    int | None,
    typer.Option(
        "--channel", metavar="N", min=0, help="Which volume of a 4D image to read, from 0."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the full traceback of an error.",
        callback=remember_debug,
        is_eager=True,
    ),
]


@dataclass(frozen=True)
class Running:
    """How a pair is registered: the options that several commands share.

    Parameters
    ----------
    weights : str or None
        Shipped name or path; None for the shipped ones.
    affine : Affine
    diffeomorphic : bool or None
        None: as the weights say.
    device : Device
    size : int, "native" or None
        None: as the weights say.
    refine : int
        Steps on the pair itself.
    similarity : Similarity
    contrast : Contrast
    smoothness : Smoothness
    keep : Keep
        Which stage is the result.
    """

    weights: str | None = None
    affine: Affine = Affine.auto
    diffeomorphic: bool | None = None
    device: Device = Device.auto
    size: int | str | None = None
    refine: int = 0
    similarity: Similarity = Similarity.auto
    contrast: Contrast = Contrast.auto
    smoothness: Smoothness = Smoothness.accurate
    keep: Keep = Keep.best

    def network(self) -> tuple[str, SHMoAReg]:
        """The name of the weights and the network, on its device.

        Raises
        ------
        InputError
            If there are no such weights or no such device.
        """
        from napari_shmoareg.io import load_network

        device = chosen_device(self.device.value)
        name, _ = chosen_weights(self.weights, device)
        return name, load_network(name, device=device)

    def replay(self, pair: VolumePair, network: SHMoAReg, report: Report) -> Replay:
        """Align a pair and make its `Replay`, telling `report` what is done."""
        from napari_shmoareg.registration.affine import align
        from napari_shmoareg.registration.replay import Replay

        report("aligning", 0.0)
        alignment = align(pair, self.affine.value)
        report("deforming", 0.05)
        settings = {
            "size": self.size,
            "diffeomorphic": self.diffeomorphic,
            "contrast": self.contrast.value,
        }
        return Replay.of(pair, network, affine=alignment.matrix, settings=settings)

    def register(self, pair: VolumePair, network: SHMoAReg | None, report: Report) -> Registration:
        """Register a pair, by a network or without one, telling `report` how far it is."""
        from napari_shmoareg.registration.register import register

        why = "none, as requested"
        if network is not None:
            _, why = chosen_weights(self.weights, chosen_device(self.device.value))
        registration = register(
            pair,
            network,
            affine=self.affine.value,
            size=self.size,
            diffeomorphic=self.diffeomorphic,
            device=self.device.value,
            refine=self.refine,
            similarity=self.similarity.value,
            contrast=self.contrast.value,
            smoothness=self.smoothness.value,
            keep=self.keep.value,
            progress=report,
        )
        return replace(registration, choices={"weights": why, **registration.choices})


STEP, EXPERTS = "What a step learns", "How experts learn, beyond the paper"
SETTINGS: tuple[tuple[type[Any], str], ...] = ((FineTuning, STEP), (RunSettings, "The run"))
OTHERWISE = {
    "steps": f"{FineTuning.steps}, with --from none {ITERATIONS}",
    "size": "as the weights say",
    "diffeomorphic": "as the weights say",
    "final_rate": "that of --learning-rate",
}


def with_settings(
    command: Callable[..., None],
    *,
    settings: Sequence[tuple[type[Any], str]] = SETTINGS,
    without: Collection[str] = (),
    default: str | None = None,
) -> Callable[..., None]:
    """A command that takes an option for every setting, None where it is not given.

    Parameters
    ----------
    command : callable
        Its own parameters have annotations of Typer's; the settings come in ``**given``.
    settings : sequence of (class, str)
        And the panel of the help in which they stand.
    without : collection of str
        Settings that have no option, besides the command's own parameters.
    default : str, optional
        What the help says that they are by default; else their own.
    """

    def taking(**given: Any) -> None:
        command(**given)

    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    taking.__name__, taking.__doc__, taking.__module__ = (
        command.__name__,
        command.__doc__,
        command.__module__,
    )
    taken = {*without, *(parameter.name for parameter in own)}
    more = [each for each in setting_parameters(settings, default) if each.name not in taken]
    taking.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    taking.__annotations__ = {}
    return taking


def setting_parameters(
    classes: Sequence[tuple[type[Any], str]] = SETTINGS, default: str | None = None
) -> Iterator[inspect.Parameter]:
    """A keyword parameter for each setting, with its option."""
    experts = {field.name for field in fields(ExpertLearning)}
    for settings, panel in classes:
        words, hints = described(cast(Any, settings)), get_type_hints(settings)
        for field in own_first(settings):
            kind, flags = _kind(field.name, hints[field.name]), _flags(field.name)
            option = typer.Option(
                flags,
                help=words[field.name],
                show_default=default or OTHERWISE.get(field.name, _shown(field.default)),
                rich_help_panel=EXPERTS if field.name in experts else panel,
            )
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )


def chosen(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was given, as plain values: fields of `FineTuning`, and of `RunSettings`."""
    found = []
    for settings, _ in SETTINGS:
        names = [field.name for field in fields(settings) if given.get(field.name) is not None]
        found.append({name: _value(given[name]) for name in names})
    return found[0], found[1]


def _flags(name: str) -> str:
    kebab = name.replace("_", "-")
    hints = {
        key: kind for settings, _ in SETTINGS for key, kind in get_type_hints(settings).items()
    }
    return f"--{kebab}/--no-{kebab}" if hints[name] is bool else f"--{kebab}"


def _kind(name: str, hint: Any) -> Any:
    """The type that Typer reads: words of a Literal as an enumeration, and without None."""
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is Literal:
        return StrEnum(name, {word: word for word in get_args(hint)})
    return hint


def _value(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)
