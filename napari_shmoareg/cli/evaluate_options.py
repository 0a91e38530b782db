"""What an evaluation was asked for: which pairs, which method, which weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.options import Kind, parse_window
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import user_path

if TYPE_CHECKING:
    from napari_shmoareg.datasets import Dataset
    from napari_shmoareg.evaluation.run import Part


class PartName(StrEnum):
    """Which part of a split."""

    train = "train"
    validation = "validation"
    test = "test"
    all = "all"


def parse_shard(text: str) -> tuple[int, int]:
    """``--shard``: which of how many."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise typer.BadParameter(f"'{text}' is not I/N with I from 1 to N, such as 2/8")
    return number, of


DatasetArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATASET",
        help=(
            "A folder of images, a CSV or JSON list of pairs, a Learn2Reg data set, OASIS or BTCV."
        ),
        show_default="that of --run",
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="A run of fine-tune: its data set, its split and its best weights.",
    ),
]
PartOption = Annotated[
    PartName | None,
    typer.Option(
        "--part",
        help="Which part of the split.",
        show_default="test where there is a split, else all",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images", metavar="PATTERN", help="Of a folder: its images, such as 'images/*.nii.gz'."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option("--labels", metavar="PATTERN", help="Of a folder: the label maps of its images."),
]
Subject = Annotated[
    str | None,
    typer.Option(
        "--subject",
        metavar="REGEX",
        help="Finds the subject in a scan's name: the first group, or all.",
    ),
]
KindOption = Annotated[
    Kind, typer.Option("--kind", help="How the data set lies on the disk; auto looks.")
]
WindowOption = Annotated[
    str | None,  # two numbers: `parse_window`
    typer.Option(
        "--window",
        metavar="LOW,HIGH",
        parser=parse_window,
        help="Cut intensities off there, as -160,240 for CT.",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="A/B/C",
        help="Subjects that train, validate and test: 60/10/10, or shares.",
    ),
]
ShardOption = Annotated[
    str | None,  # two numbers: `parse_shard`
    typer.Option(
        "--shard",
        metavar="I/N",
        parser=parse_shard,
        help=(
            "Only every N-th pair from the I-th on; N processes, each with its own I, share the"
            " work and the TABLE."
        ),
    ),
]


@dataclass(frozen=True)
class EvaluationRequest:
    """Which pairs were asked for.

    Attributes
    ----------
    dataset, run : Path or None
    part : str or None
    options : mapping
        Of the data set, as of `DatasetChoice`; None is not given.
    split : str or None
    split_seed : int
    """

    dataset: Path | None
    run: Path | None
    part: str | None
    options: Mapping[str, Any]
    split: str | None
    split_seed: int


@dataclass(frozen=True)
class Chosen:
    """What that came to.

    Attributes
    ----------
    dataset : Dataset
    part : Part
    run : Path or None
        That was given.
    weights, affine : str or None
        Of the run; None for weights that it does not have yet.
    """

    dataset: Dataset
    part: Part
    run: Path | None = None
    weights: str | None = None
    affine: str | None = None


def chosen_scans(asked: EvaluationRequest) -> Chosen:
    """Open the data set and divide it.

    Raises
    ------
    InputError
        If neither a data set nor a run was given, options contradict each other, or it cannot be
        opened or divided.
    """
    from napari_shmoareg.datasets.dataset import DatasetChoice
    from napari_shmoareg.evaluation.run import ALL, Part, of_run, of_split

    given = {name: value for name, value in asked.options.items() if value is not None}
    if asked.run is not None:
        if asked.split is not None:
            raise InputError(
                "--split and --run exclude each other: the run has a split of its own."
            )
        if given and asked.dataset is None:
            names = ", ".join(f"--{name}" for name in given)
            raise InputError(
                f"{names}: the run says how its data set is read. Leave it out, or give DATASET"
                " too."
            )
        found = of_run(asked.run, asked.part or "test")
        choice = found.part.dataset
        if asked.dataset is not None:  # moved since
            choice = DatasetChoice(str(asked.dataset), **(choice.options | given))
        part = Part(choice, found.part.name, found.part.split, found.part.scans)
        return Chosen(choice.open(), part, asked.run, found.weights, found.affine)
    if asked.dataset is None:
        raise InputError("Give a DATASET, or --run with a run of fine-tune.")
    choice = DatasetChoice(str(asked.dataset), **given)
    dataset = choice.open()
    name = asked.part or ("test" if asked.split is not None else ALL)
    if name != ALL and asked.split is None and dataset.parts is None:
        raise InputError(
            f"--part {name} needs a division of the data set, which has none of its own: give"
            " --split 60/10/10 (or shares) with the --split-seed that the training had, or --run."
        )
    return Chosen(dataset, of_split(choice, dataset, name, asked.split, asked.split_seed))


def weights_for(
    method: str, asked: str | None, unigradicon: Path | None, chosen: Chosen, device: str
) -> str | None:
    """The weights of a method that needs some: those asked for, the run's, or the shipped ones;
    uniGradICON's file.

    Raises
    ------
    InputError
        If there are none of ours, they cannot be read, or the method uses none such.
    """
    from napari_shmoareg.evaluation.methods import NETWORKS
    from napari_shmoareg.io import read_card, shipped_weights
    from napari_shmoareg.io.model_card import chosen_device, chosen_weights

    if unigradicon is not None and method != "unigradicon":
        raise InputError(f"--unigradicon-weights would do nothing: the method is '{method}'.")
    if method not in NETWORKS:
        if asked is not None:
            raise InputError(f"--weights would do nothing: the method '{method}' uses none.")
        return None if unigradicon is None else str(user_path(unigradicon).resolve())
    if asked is None and chosen.run is not None and chosen.weights is None:
        raise InputError(f"{chosen.run} has no weights yet: let it learn on, or give --weights.")
    name, _ = chosen_weights(asked or chosen.weights, chosen_device(device))
    read_card(name)
    return name if name in shipped_weights() else str(user_path(name).resolve())
