"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from napari_shmoareg.cli.errors import remember_debug


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
        help="The image to be deformed (NIfTI, MGH, NRRD, MHA or a DICOM folder; FOLDER#SERIES_UID "
        "picks one of several series, FOLDER#SERIES_UID/2 the second volume of a series).",
    ),
]
Fixed = Annotated[Path, typer.Argument(metavar="FIXED", help="The image that it is brought onto.")]
MovingLabels = Annotated[
    Path | None, typer.Option("--moving-labels", metavar="FILE", help="Label map of MOVING, on the same grid.")
]
FixedLabels = Annotated[
    Path | None, typer.Option("--fixed-labels", metavar="FILE", help="Label map of FIXED, to measure the result by.")
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
        help="The weights of the method unigradicon, as its authors publish them; they are never downloaded.",
    ),
]
AffineOption = Annotated[
    Affine,
    typer.Option("--affine", help="Alignment beforehand: auto looks whether one is needed, none trusts the headers."),
]
DiffeomorphicOption = Annotated[
    bool | None,
    typer.Option(
        "--diffeomorphic/--no-diffeomorphic",
        help="Integrate the deformation so that it can be undone.",
        show_default="as the weights say",
    ),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto takes a CUDA device if there is one.")]
Size = Annotated[
    int | None,  # a number or "native": `parse_size`
    typer.Option(
        "--size",
        metavar="N|native",
        parser=parse_size,
        help="Voxels along the longest axis of the grid that the network sees; native is the fixed image's own.",
        show_default="as the weights say",
    ),
]
RefineOption = Annotated[
    int,
    typer.Option(
        "--refine",
        metavar="STEPS",
        min=0,
        help="Refine the deformation on the pair itself for so many steps, coarse to fine; 60 are a good number.",
    ),
]
SimilarityOption = Annotated[
    Similarity,
    typer.Option(
        "--similarity",
        help="What --refine compares by: lncc (local correlation), mind (self-similarity); auto looks at the pair.",
    ),
]
ContrastOption = Annotated[
    Contrast,
    typer.Option(
        "--contrast",
        help="match shows the network MOVING in FIXED's contrast; auto does so where they clearly differ.",
    ),
]
SmoothnessOption = Annotated[
    Smoothness,
    typer.Option(
        "--smoothness",
        help="Of the deformation, the refinement's and the network's: what is smoother overlaps a little less and "
        "folds less.",
    ),
]
NetworkOption = Annotated[
    Network,
    typer.Option(
        "--network",
        help="none deforms without a trained network: by --refine from the alignment; without --refine too, the "
        "alignment is all.",
    ),
]
KeepOption = Annotated[
    Keep,
    typer.Option(
        "--keep",
        help="best: of headers, alignment, network and refinement the one under which the images agree best; "
        "last: the last of them in any case.",
    ),
]
Nan = Annotated[
    float | None,
    typer.Option("--nan", metavar="VALUE", parser=parse_number, help="Read NaN and infinite voxels as this value."),
]
Channel = Annotated[
    int | None, typer.Option("--channel", metavar="N", min=0, help="Which volume of a 4D image to read, from 0.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the full traceback of an error.", callback=remember_debug, is_eager=True)
]
