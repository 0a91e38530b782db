"""Arguments and options that several commands share; options of settings classes are generated."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from napari_shmoareg.cli.console import ProgressCallback, remember_debug
from napari_shmoareg.io.model_card import choose_device, choose_weights
from napari_shmoareg.settings import (
    FILLS,
    Device,
    RegistrationRequest,
    RegistrationSettings,
    help_texts,
    own_fields_first,
)
from napari_shmoareg.training.settings import ITERATIONS, ExpertLearning, FineTuning, RunSettings

if TYPE_CHECKING:
    from napari_shmoareg.geometry import Transform, VolumePair
    from napari_shmoareg.model import SHMoAReg
    from napari_shmoareg.registration.register import Registration
    from napari_shmoareg.registration.replay import Replay


class Kind(StrEnum):
    """Layout of a data set."""

    auto = "auto"
    folder = "folder"
    list = "list"
    learn2reg = "learn2reg"
    oasis = "oasis"
    btcv = "btcv"


def parse_window(text: str) -> tuple[float, float]:
    """Parse ``--window``: two numbers."""
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not two numbers separated by a comma, such as -160,240"
        ) from None
    return low, high


class Network(StrEnum):
    """Whether a network is used."""

    auto = "auto"
    none = "none"


class LandmarkFit(StrEnum):
    """Transform fitted to landmark pairs."""

    rigid = "rigid"
    affine = "affine"
    thin_plate = "thin-plate"


class Passes(StrEnum):
    """Passes of the network in which a control acts."""

    all = "all"
    last = "last"


def parse_size(text: str) -> int | str:
    """Parse ``--size``: a number of voxels, or "native"."""
    if text == "native":
        return text
    if text.isdigit():
        return int(text)
    raise typer.BadParameter(f"'{text}' is neither 'native' nor a whole number of voxels")


def parse_fill(text: str) -> float | str:
    """Parse ``--fill``: auto, minimum, air or a number."""
    return text if text in FILLS else parse_number(text)


def parse_number(text: str) -> float:
    """Parse ``--nan``: the replacement of NaN and infinite voxels."""
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
Fixed = Annotated[
    Path, typer.Argument(metavar="FIXED", help="The image to which it is registered.")
]
MovingLabels = Annotated[
    Path | None,
    typer.Option("--moving-labels", metavar="FILE", help="Label map of MOVING, on the same grid."),
]
FixedLabels = Annotated[
    Path | None,
    typer.Option(
        "--fixed-labels", metavar="FILE", help="Label map of FIXED, to measure the result."
    ),
]
LabelNamesFile = Annotated[
    Path | None,
    typer.Option(
        "--label-names",
        metavar="FILE",
        help=(
            "Names of the labels: a colour table of FreeSurfer or 3D Slicer, a label description"
            " of ITK-SNAP, a CSV or TSV table (index, name), or a dataset.json."
        ),
        show_default="a file beside the labels, or FreeSurfer's codes",
    ),
]
FixedMask = Annotated[
    Path | None,
    typer.Option(
        "--fixed-mask",
        metavar="FILE",
        help=(
            "Mask of FIXED: alignment, refinement and similarity count only voxels in it (not 0);"
            " the deformation is smooth everywhere."
        ),
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME|PATH",
        help="Name of shipped weights (`shmoareg info` lists them) or a .safetensors file.",
        show_default="the shipped ones",
    ),
]
Initial = Annotated[
    Path | None,
    typer.Option(
        "--initial",
        metavar="FILE",
        help=(
            "Initial transform, from FIXED to MOVING as ITK and ANTs write it (.txt, .tfm, .mat,"
            " .h5): the alignment starts from it instead of the headers; --affine none keeps it."
        ),
    ),
]
LandmarkFile = Annotated[
    Path | None,
    typer.Option(
        "--landmarks",
        metavar="FILE",
        help=(
            "CSV of corresponding points, fixed point first, mm: the registration starts from the"
            " transform that --landmark-fit fits to them."
        ),
    ),
]
LandmarkFitOption = Annotated[
    LandmarkFit,
    typer.Option(
        "--landmark-fit",
        help=(
            "Transform fitted to --landmarks: rigid (3 pairs at least), affine (4), or thin-plate,"
            " which also bends (5) and is not optimised by the alignment."
        ),
    ),
]
UniGradICONWeights = Annotated[
    Path | None,
    typer.Option(
        "--unigradicon-weights",
        metavar="FILE",
        help=(
            "Weights of the method unigradicon, as published by its authors; they are never"
            " downloaded."
        ),
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help=help_texts(RegistrationSettings)["device"])
]
NetworkOption = Annotated[
    Network,
    typer.Option(
        "--network",
        help=(
            "none uses no network: --refine starts from the alignment; without --refine, the"
            " result is the alignment alone."
        ),
    ),
]
Nan = Annotated[
    float | None,
    typer.Option(
        "--nan",
        metavar="VALUE",
        parser=parse_number,
        help="Replace NaN and infinite voxels by this value.",
    ),
]
FILL = {"metavar": "auto|minimum|air|VALUE", "parser": parse_fill}
Fill = Annotated[
    Any,
    typer.Option(
        "--fill",
        help="Value of an image where IMAGE has no voxels; see `register`. Labels get 0.",
        **FILL,
    ),
]
Channel = Annotated[
    int | None,
    typer.Option("--channel", metavar="N", min=0, help="Volume of a 4D image to read, from 0."),
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


class CommandRequest(RegistrationRequest):
    """The registration that a command line requests."""

    @classmethod
    def of(cls, weights: str | None, given: Mapping[str, Any]) -> CommandRequest:
        """Make it from ``--weights`` and the options of `with_settings`."""
        return cls(weights=weights or "auto", **settings_in(given, RegistrationSettings))

    def network(self) -> tuple[str, SHMoAReg]:
        """Load the network on its device; return the name of the weights and the network.

        Raises
        ------
        InputError
            If there are no such weights or no such device.
        """
        from napari_shmoareg.io import load_network

        device = choose_device(self.device)
        name, _ = choose_weights(self.weights, device)
        return name, load_network(name, device=device)

    def replay(self, pair: VolumePair, network: SHMoAReg, report: ProgressCallback) -> Replay:
        """Align a pair and make its `Replay`."""
        from napari_shmoareg.registration.affine import align
        from napari_shmoareg.registration.replay import Replay

        report("aligning", 0.0)
        alignment = align(pair, self.affine)
        report("deforming", 0.05)
        return Replay.of(pair, network, affine=alignment.matrix, settings=self.to_dict())

    def register(
        self,
        pair: VolumePair,
        network: SHMoAReg | None,
        report: ProgressCallback,
        initial: tuple[Transform, str] | None = None,
    ) -> Registration:
        """Register a pair, with or without a network, from an initial transform and its origin."""
        from napari_shmoareg.registration.register import register

        why = "none, as requested"
        if network is not None:
            _, why = choose_weights(self.weights, choose_device(self.device))
        start, origin = initial or (None, "")
        registration = register(pair, network, self, initial=start, progress=report)
        first = {"weights": why} | ({"initial": origin} if initial else {})
        return replace(registration, choices={**first, **registration.choices})


STEP, EXPERTS = "Training step", "Training of the experts, beyond the paper"
SETTINGS: tuple[tuple[type[Any], str], ...] = ((FineTuning, STEP), (RunSettings, "The run"))
REGISTRATION = ((RegistrationSettings, "The registration"),)
HELP_DEFAULTS = {
    "steps": f"{FineTuning.steps}, with --from none {ITERATIONS}",
    "size": "that of the weights",
    "diffeomorphic": "that of the weights",
    "final_rate": "that of --learning-rate",
}
OPTION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "refine": {"metavar": "STEPS", "min": 0},
    "size": {"metavar": "N|native", "parser": parse_size},
    "fill": FILL,
}
INTERNAL = {"refine_seconds"}  # settings without an option


def with_settings(
    command: Callable[..., None],
    *,
    settings: Sequence[tuple[type[Any], str]] = SETTINGS,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    default: str | Mapping[str, str] = "",
) -> Callable[..., None]:
    """Add an option for every setting to a command; options that are not given are None.

    Parameters
    ----------
    command : callable
        Its own parameters have Typer annotations; the settings are passed in ``**given``.
    settings : sequence of (class, str)
        Settings classes, with the help panel of their options.
    only : collection of str, optional
        Settings that get an option; all by default.
    without : collection of str
        Settings that get no option, besides the command's own parameters.
    default : str or mapping of str
        Default shown in the help, for all settings or by name.
    """

    def wrapper(**given: Any) -> None:
        command(**given)

    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    wrapper.__name__, wrapper.__doc__, wrapper.__module__ = (
        command.__name__,
        command.__doc__,
        command.__module__,
    )
    excluded = {*without, *INTERNAL, *(parameter.name for parameter in own)}
    added = [
        each
        for each in setting_parameters(settings, default)
        if each.name not in excluded and (only is None or each.name in only)
    ]
    wrapper.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {}
    return wrapper


def setting_parameters(
    classes: Sequence[tuple[type[Any], str]], default: str | Mapping[str, str]
) -> Iterator[inspect.Parameter]:
    """Yield a keyword parameter with a Typer option for each setting."""
    experts = {field.name for field in fields(ExpertLearning)}
    settings: Any
    for settings, panel in classes:
        words, hints = help_texts(settings), get_type_hints(settings)
        for field in own_fields_first(settings):
            name, hint = field.name, hints[field.name]
            shown = default if isinstance(default, str) else default.get(name, "")
            option = typer.Option(
                _flags(name, hint),
                help=words[name],
                show_default=shown or HELP_DEFAULTS.get(name, _default_text(field.default)),
                rich_help_panel=EXPERTS if name in experts else panel,
                **_option_arguments(name, hint),
            )
            yield inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_types(hint)[0] | None, option],
            )


def settings_in(given: Mapping[str, Any], settings: type[Any]) -> dict[str, Any]:
    """The given values of the fields of a settings class."""
    names = [field.name for field in fields(settings)]
    return {name: given[name] for name in names if given.get(name) is not None}


def _flags(name: str, hint: Any) -> str:
    kebab = name.replace("_", "-")
    return f"--{kebab}/--no-{kebab}" if bool in _types(hint) else f"--{kebab}"


def _types(hint: Any) -> list[Any]:
    """The types of a setting, without None."""
    union = get_origin(hint) in (types.UnionType, Union)
    return [member for member in get_args(hint) if member is not type(None)] if union else [hint]


def _option_arguments(name: str, hint: Any) -> dict[str, Any]:
    """Extra arguments of `typer.Option`: metavar, parser, minimum."""
    return OPTION_ARGUMENTS.get(name, {})


def _default_text(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)
