"""The folder of an evaluation: plan, one file per pair, resumed by the same command.

Several processes may work in it at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from napari_shmoareg.datasets import PairFiles, Split, choose_pairs, split_dataset
from napari_shmoareg.datasets.dataset import DatasetChoice
from napari_shmoareg.datasets.splits import read_division
from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation.baselines import evaluated_method
from napari_shmoareg.evaluation.methods import NETWORKS, used_versions
from napari_shmoareg.geometry import Volume, VolumePair
from napari_shmoareg.io import load_network
from napari_shmoareg.io.landmarks import read_landmarks
from napari_shmoareg.io.machine import machine, versions
from napari_shmoareg.io.model_card import checksum_of
from napari_shmoareg.io.untrusted import check_fields, user_path
from napari_shmoareg.io.work_folder import WorkFolder, check_row
from napari_shmoareg.metrics.measure import Method, labels_of, measure_pair, selected
from napari_shmoareg.registration.resources import find_device
from napari_shmoareg.settings import RegistrationSettings
from napari_shmoareg.training.plan import read_plan
from napari_shmoareg.training.run import RunFolder

if TYPE_CHECKING:
    from napari_shmoareg.datasets import Dataset


FORMAT = "shmoareg-evaluation-1"
Case = dict[str, Any]
Table = dict[str, float | None]


@dataclass(frozen=True)
class _Plan:
    """The parts of a plan that are read, and their types."""

    dataset: dict[str, Any]
    part: str
    split: str
    method: str
    weights: dict[str, Any] | None
    settings: dict[str, Any]
    pairs: list[tuple[str, str]]
    versions: dict[str, Any]


@dataclass(frozen=True)
class _Case:
    """The parts of a case that are read, and their types."""

    number: int
    moving: str
    fixed: str
    moving_subject: str
    fixed_subject: str
    seconds: float | None
    error: str | None
    stages: dict[str, Any]
    machine: dict[str, Any] | None = None
    warnings: list[str] | None = None
    labels: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Stage:
    """The measures of a case at one stage."""

    means: Table
    labels: dict[str, Table]


@dataclass(frozen=True)
class _Labels:
    """Which labels both images of a case have, and which only one."""

    both: list[int]
    only_moving: list[int] | None = None
    only_fixed: list[int] | None = None


class EvaluationFolder(WorkFolder):
    """The folder of an evaluation: evaluation.json, and a case per pair in cases/.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "evaluation.json", "cases", "evaluation")

    def read_plan(self) -> dict[str, Any]:
        """The plan.

        Raises
        ------
        InputError
            If the folder holds no evaluation, or the plan is damaged or of another version.
        """
        if not self.plan.is_file():
            raise InputError(
                f"{self.path} holds no evaluation (there is no {self.plan.name}). Give a folder"
                " that 'shmoareg evaluate --out' wrote."
            )
        found = super().read_plan()
        if found.get("format") != FORMAT:
            raise InputError(
                f"{self.plan} is of another version of shmoareg (its format is not '{FORMAT}')."
            )
        try:
            check_row(_Plan, found)
            texts = [found["dataset"]["path"], (found["weights"] or {"name": ""})["name"]]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("a path or a name is no text")
        except (KeyError, ValueError) as error:
            raise InputError(f"{self.plan} is damaged ({error}). Give another --out.") from error
        return found

    def read_case(self, number: int, pair: tuple[str, str]) -> Case | None:
        """What a pair came to, the first being number 1; None if there is nothing yet.

        Raises
        ------
        InputError
            If the file is damaged or of another pair.
        """

        def parse(case: Case) -> Case:
            check_row(_Case, case)
            if (case["number"], case["moving"], case["fixed"]) != (number, *pair):
                raise ValueError("it is of another pair")
            if case.get("labels"):
                check_fields(_Labels, case["labels"])
                check_row(_Labels, case["labels"])
            for stage in () if case["error"] else case["stages"].values():
                check_row(_Stage, stage)
                if not all(re.fullmatch(r"-?\d{1,18}", label) for label in stage["labels"]):
                    raise ValueError("a label is no whole number")
            return case

        return self.read(f"{number:04d}", parse)

    def read_cases(self, plan: Mapping[str, Any]) -> tuple[list[Case], list[str]]:
        """All cases that are there, in the order of the plan's pairs, and what is wrong with
        damaged ones.
        """
        cases, damaged = [], []
        for number, (moving, fixed) in enumerate(plan["pairs"], start=1):
            try:
                case = self.read_case(number, (moving, fixed))
            except InputError as error:
                damaged.append(str(error))
                continue
            if case is not None:
                cases.append(case)
        return cases, damaged

    def seen(self) -> set[tuple[str, int]]:
        """Names and times of all case files, to notice that another process wrote one."""
        return {(entry.name, entry.stat().st_mtime_ns) for entry in self.rows.glob("[!.]*.json")}


PARTS = ("train", "validation", "test")
ALL = "all"
SETTINGS: dict[str, Any] = {
    **RegistrationSettings().to_dict(),
    "surface": True,
    "definitions": False,
}
del SETTINGS["keep"]  # an evaluation keeps the best stage
"""All that a method and its scoring take, as by default."""


@dataclass(frozen=True)
class Part:
    """Which scans of a data set are meant.

    Attributes
    ----------
    dataset : DatasetChoice
    name : str
        One of `PARTS`, or "all".
    split : str
        How it was divided, in words.
    scans : tuple of str or None
        Their names; None: all.
    """

    dataset: DatasetChoice
    name: str
    split: str
    scans: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RunChoice:
    """What a run of learning tells an evaluation.

    Attributes
    ----------
    part : Part
    weights : str or None
        The best it has so far; None if it has none yet.
    affine : str
        How its scans were aligned.
    """

    part: Part
    weights: str | None
    affine: str


def of_run(run: str | Path, part: str = "test") -> RunChoice:
    """The data set, a part of the split, and the best weights of a run of learning.

    Raises
    ------
    InputError
        If it is no run, or its split is not there yet.
    """
    folder = RunFolder(run)
    plan = read_plan(folder.run_json)
    if not folder.split.is_file():
        raise InputError(
            f"{folder.path} has no split yet (there is no {folder.split.name}): let the run begin"
            " first."
        )
    division = read_division(folder.split)
    names = tuple(
        name for one in (PARTS if part == ALL else (part,)) for name in division.used(one)
    )
    left_out = sum(
        name in division.left_out for one in PARTS for name in getattr(division.split, one)
    )
    scans = "one scan" if left_out == 1 else f"{left_out} scans"
    without = f", without {scans} that its check-up left out" if left_out else ""
    weights = None if folder.weights is None else str(folder.weights)
    return RunChoice(
        Part(plan.dataset, part, f"of the run {folder.path}{without}", names),
        weights,
        plan.run.affine,
    )


def of_split(
    choice: DatasetChoice, dataset: Dataset, part: str, split: str | None, seed: int
) -> Part:
    """A part of a data set, divided now.

    Raises
    ------
    InputError
        If it cannot be divided so.
    """
    if part == ALL:
        return Part(choice, ALL, "none")
    drawn: Split = split_dataset(dataset, split or "auto", seed)
    return Part(choice, part, f"{split or 'auto'} with the seed {seed}", getattr(drawn, part))


def pairs_of(
    dataset: Dataset, part: Part, count: int | None = None, seed: int = 1
) -> list[tuple[str, str]]:
    """The pairs (moving, fixed) of a part: all that can be made of it, or so many, each scan as
    often as the others.

    Raises
    ------
    InputError
        If there is none, or a scan of the part is not in the data set.
    """
    names = dataset.names if part.scans is None else part.scans
    missing = sorted(set(names) - set(dataset.names))
    if missing:
        raise InputError(
            f"{len(missing)} scans of the part '{part.name}' are not in {dataset.root}, such as"
            f" '{missing[0]}'. Was the data set moved or changed since? Give the one that it was."
        )
    pairs = dataset.ordered_pairs(names)
    if not pairs:
        raise InputError(
            f"No pair can be made of the {len(names)} scans of the part '{part.name}' of"
            f" {dataset.root} (split: {part.split}). Name another --part, or divide the data set"
            " otherwise."
        )
    if count is None or count >= len(pairs):
        return pairs
    files = [PairFiles(Path(moving), Path(fixed)) for moving, fixed in pairs]
    return [(str(chosen.moving), str(chosen.fixed)) for chosen in choose_pairs(files, count, seed)]


def evaluation_plan(
    part: Part,
    pairs: Sequence[tuple[str, str]],
    method: str,
    weights: str | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the numbers depend on, as it stands in evaluation.json.

    Parameters
    ----------
    part : Part
    pairs : sequence of (moving, fixed)
    method : str
        One of `napari_shmoareg.evaluation.methods.METHODS`.
    weights : str or None
        Shipped name or file; None for a method without.
    settings : mapping
        Those of `SETTINGS` that are otherwise.
    """
    known = None if weights is None else {"name": weights, "sha256": checksum_of(weights)}
    path = str(user_path(part.dataset.path).resolve())
    installed = {name: number for name, number in versions().items() if number is not None}
    plan: dict[str, Any] = {
        "format": FORMAT,
        "dataset": {"path": path, "options": part.dataset.options},
        "part": part.name,
        "split": part.split,
        "method": method,
        "weights": known,
        "settings": SETTINGS | dict(settings),
        "pairs": [list(pair) for pair in pairs],
        "versions": installed | used_versions(method),
    }
    return plan


def ready_method(
    name: str, settings: Mapping[str, Any], weights: str | None, device: str
) -> Method:
    """A method with its weights, ready to run.

    Raises
    ------
    InputError
        If it is not installed, or its weights cannot be read.
    """
    network = load_network(str(weights), device=device) if name in NETWORKS else None
    return evaluated_method(name, SETTINGS | {**settings, "unigradicon_weights": weights}, network)


KEPT = 4  # scans that stay in memory, as neighbouring pairs share one
Tell = Callable[[Case | None, str], None]


@dataclass(frozen=True)
class Shard:
    """Every n-th pair.

    Attributes
    ----------
    number, of : int
        From 1: the second of eight is Shard(2, 8).
    """

    number: int = 1
    of: int = 1

    def share(self, count: int) -> list[int]:
        """The numbers, from 1, of its pairs among so many."""
        return list(range(self.number, count + 1, self.of))


def evaluate_cases(
    folder: EvaluationFolder,
    plan: Mapping[str, Any],
    dataset: Dataset,
    method: Method,
    shard: Shard,
    tell: Tell,
) -> list[Case]:
    """Run the pairs of a shard that have no case yet, or one with an error.

    Parameters
    ----------
    folder : EvaluationFolder
        Begun with the plan.
    plan : mapping
    dataset : Dataset
    method : callable
    shard : Shard
    tell : callable
        Called after each pair with its case and nothing, and with None and a word on a damaged
        case.

    Returns
    -------
    list of cases
        Of the whole shard.

    Raises
    ------
    InputError
        If a case cannot be written.  What goes wrong within a pair is its case's "error".
    """
    settings = plan["settings"]
    measures = selected(surface=settings["surface"], definitions=settings["definitions"])
    where = machine() | {
        "device": find_device(settings["device"]).type,
        "threads": torch.get_num_threads(),
    }
    read = lru_cache(maxsize=KEPT)(dataset.read)

    def kept(key: str) -> Case | None:
        try:
            case = folder.read_case(int(key), tuple(plan["pairs"][int(key) - 1]))
        except InputError as error:
            tell(None, f"{error} The pair is registered again.")
            return None
        return None if case is None or case["error"] else case

    def do(key: str) -> Case:
        moving, fixed = plan["pairs"][int(key) - 1]
        about = {"number": int(key), "moving": moving, "fixed": fixed}
        for role in ("moving", "fixed"):
            about[f"{role}_subject"] = dataset.scan(about[role]).subject
        case = _case(dataset, read, (moving, fixed), method, measures)
        return about | case | {"machine": where}

    found = []
    keys = [f"{number:04d}" for number in shard.share(len(plan["pairs"]))]
    for case, new in folder.complete(keys, kept, do):
        if new:
            tell(case, "")
        found.append(case)
    return found


def _case(
    dataset: Dataset,
    read: Callable[[str], tuple[Volume, Volume | None]],
    names: tuple[str, str],
    method: Method,
    measures: Collection[str],
) -> dict[str, Any]:
    """Seconds, warnings and stages of one pair, or its error."""
    case: dict[str, Any] = {"seconds": None, "warnings": [], "error": "", "stages": {}}
    try:
        (moving, moving_labels), (fixed, fixed_labels) = read(names[0]), read(names[1])
        pair = VolumePair(moving, fixed, moving_labels, fixed_labels)
        file = dataset.landmarks.get(names)
        points = None if file is None else tuple(read_landmarks(file))
        began = time.perf_counter()
        result = method(pair)
        case["seconds"] = time.perf_counter() - began
        case["warnings"] = list(result.warnings)
        if moving_labels is not None and fixed_labels is not None:
            case["labels"] = {key: list(found) for key, found in labels_of(pair)._asdict().items()}
        case["stages"] = measure_pair(pair, result, measures, points)  # type: ignore[arg-type]
    except Exception as error:  # one pair of a long night: it is told and kept in its case
        text = " ".join(str(error).split()) or "no message"
        case["error"] = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return case
