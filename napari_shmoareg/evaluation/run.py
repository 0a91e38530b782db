"""Evaluation folder: a plan and one file per pair; resumed by the same command.

Several processes can work in it at the same time.
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
from napari_shmoareg.datasets.dataset import PARTS, DatasetChoice
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
from napari_shmoareg.training.run_folder import RunFolder

if TYPE_CHECKING:
    from napari_shmoareg.datasets import Dataset


FORMAT = "shmoareg-evaluation-1"
Case = dict[str, Any]
Table = dict[str, float | None]


@dataclass(frozen=True)
class _Plan:
    """Fields of a plan that are read, with their types."""

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
    """Fields of a case that are read, with their types."""

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
    """Labels that both images of a case have, and labels of only one."""

    both: list[int]
    only_moving: list[int] | None = None
    only_fixed: list[int] | None = None


class EvaluationFolder(WorkFolder):
    """The folder of an evaluation: evaluation.json, and one case per pair in cases/."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "evaluation.json", "cases", "evaluation")

    def read_plan(self) -> dict[str, Any]:
        """Read evaluation.json.

        Raises
        ------
        InputError
            If the folder holds no evaluation, or the plan is damaged or of another version.
        """
        if not self.plan.is_file():
            raise InputError(
                f"{self.path} holds no evaluation (there is no {self.plan.name}). Give a folder"
                " written by 'shmoareg evaluate --out'."
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
                raise ValueError("a path or a name is not text")
        except (KeyError, ValueError) as error:
            raise InputError(f"{self.plan} is damaged ({error}). Give another --out.") from error
        return found

    def read_case(self, number: int, pair: tuple[str, str]) -> Case | None:
        """Read the case of a pair, numbered from 1; None if there is none yet.

        Raises
        ------
        InputError
            If the file is damaged or of another pair.
        """

        def parse(case: Case) -> Case:
            check_row(_Case, case)
            if (case["number"], case["moving"], case["fixed"]) != (number, *pair):
                raise ValueError("it belongs to another pair")
            if case.get("labels"):
                check_fields(_Labels, case["labels"])
                check_row(_Labels, case["labels"])
            for stage in () if case["error"] else case["stages"].values():
                check_row(_Stage, stage)
                if not all(re.fullmatch(r"-?\d{1,18}", label) for label in stage["labels"]):
                    raise ValueError("a label is not a whole number")
            return case

        return self.read(f"{number:04d}", parse)

    def read_cases(self, plan: Mapping[str, Any]) -> tuple[list[Case], list[str]]:
        """All existing cases, in the order of the plan's pairs, and errors of damaged ones."""
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

    def snapshot(self) -> set[tuple[str, int]]:
        """Names and times of all case files, to detect that another process wrote one."""
        return {(entry.name, entry.stat().st_mtime_ns) for entry in self.rows.glob("[!.]*.json")}


ALL = "all"
SETTINGS: dict[str, Any] = {
    **RegistrationSettings().to_dict(),
    "surface": True,
    "definitions": False,
}
# an evaluation keeps the best stage, and measures no warped image where it was filled
del SETTINGS["keep"], SETTINGS["fill"]
"""Default settings of methods and scoring."""


@dataclass(frozen=True)
class Part:
    """A part of a data set.

    Attributes
    ----------
    dataset : DatasetChoice
    name : str
        One of `PARTS`, or "all".
    split : str
        Description of the split.
    scans : tuple of str or None
        Names of the scans; None is all.
    """

    dataset: DatasetChoice
    name: str
    split: str
    scans: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RunChoice:
    """Inputs that an evaluation takes from a training run.

    Attributes
    ----------
    part : Part
    weights : str or None
        The best weights so far; None if there are none yet.
    affine : str
        How the scans of the run were aligned.
    """

    part: Part
    weights: str | None
    affine: str


def part_from_run(run: str | Path, part: str = "test") -> RunChoice:
    """The data set, a part of the split, and the best weights of a training run.

    Raises
    ------
    InputError
        If the folder is no run, or the run has no split yet.
    """
    folder = RunFolder(run)
    plan = read_plan(folder.run_json)
    if not isinstance(plan.dataset, DatasetChoice):
        raise InputError(
            f"The run in {folder.path} was trained on synthetic pairs, so it has no scans. Give a"
            f" data set, and the weights {folder.weights}."
        )
    if not folder.split.is_file():
        raise InputError(
            f"{folder.path} has no split yet (there is no {folder.split.name}). Start the run"
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
    # stored in the plan of an evaluation and compared on resuming: other words refuse older folders
    without = f", without {scans} that its check-up left out" if left_out else ""
    weights = None if folder.weights is None else str(folder.weights)
    return RunChoice(
        Part(plan.dataset, part, f"of the run {folder.path}{without}", names),
        weights,
        plan.run.affine,
    )


def part_from_split(
    choice: DatasetChoice, dataset: Dataset, part: str, split: str | None, seed: int
) -> Part:
    """A part of a data set from a new split.

    Raises
    ------
    InputError
        If this split is not possible.
    """
    if part == ALL:
        return Part(choice, ALL, "none")
    drawn: Split = split_dataset(dataset, split or "auto", seed)
    return Part(choice, part, f"{split or 'auto'} with the seed {seed}", getattr(drawn, part))


def pairs_of(
    dataset: Dataset, part: Part, count: int | None = None, seed: int = 1
) -> list[tuple[str, str]]:
    """The pairs (moving, fixed) of a part: all, or `count` pairs that use the scans evenly.

    Raises
    ------
    InputError
        If there are no pairs, or a scan of the part is not in the data set.
    """
    names = dataset.names if part.scans is None else part.scans
    missing = sorted(set(names) - set(dataset.names))
    if missing:
        raise InputError(
            f"{len(missing)} scans of the part '{part.name}' are not in {dataset.root}, such as"
            f" '{missing[0]}'. Was the data set moved or changed since? Give the original one."
        )
    pairs = dataset.ordered_pairs(names)
    if not pairs:
        raise InputError(
            f"No pair can be made of the {len(names)} scans of the part '{part.name}' of"
            f" {dataset.root} (split: {part.split}). Choose another --part or another split."
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
    """Everything that the results depend on, as written to evaluation.json.

    Parameters
    ----------
    part : Part
    pairs : sequence of (moving, fixed)
    method : str
        One of `napari_shmoareg.evaluation.methods.METHODS`.
    weights : str or None
        Shipped name or file; None for a method without weights.
    settings : mapping
        Values that differ from `SETTINGS`.
    """
    weights_info = None if weights is None else {"name": weights, "sha256": checksum_of(weights)}
    path = str(user_path(part.dataset.path).resolve())
    installed = {name: number for name, number in versions().items() if number is not None}
    plan: dict[str, Any] = {
        "format": FORMAT,
        "dataset": {"path": path, "options": part.dataset.options},
        "part": part.name,
        "split": part.split,
        "method": method,
        "weights": weights_info,
        "settings": SETTINGS | dict(settings),
        "pairs": [list(pair) for pair in pairs],
        "versions": installed | used_versions(method),
    }
    return plan


def ready_method(
    name: str, settings: Mapping[str, Any], weights: str | None, device: str
) -> Method:
    """Load a method with its weights.

    Raises
    ------
    InputError
        If it is not installed, or its weights cannot be read.
    """
    network = load_network(str(weights), device=device) if name in NETWORKS else None
    return evaluated_method(name, SETTINGS | {**settings, "unigradicon_weights": weights}, network)


CACHED_SCANS = 4  # scans kept in memory, as consecutive pairs share one
CaseCallback = Callable[[Case | None, str], None]


@dataclass(frozen=True)
class Shard:
    """Every n-th pair: the second of eight shards is Shard(2, 8)."""

    number: int = 1
    of: int = 1

    def share(self, count: int) -> list[int]:
        """Numbers, from 1, of the shard's pairs among `count` pairs."""
        return list(range(self.number, count + 1, self.of))


def evaluate_cases(
    folder: EvaluationFolder,
    plan: Mapping[str, Any],
    dataset: Dataset,
    method: Method,
    shard: Shard,
    report_case: CaseCallback,
) -> list[Case]:
    """Run the pairs of a shard that have no case yet, or a case with an error.

    Parameters
    ----------
    folder : EvaluationFolder
        Already started with the plan.
    plan : mapping
    dataset : Dataset
    method : callable
    shard : Shard
    report_case : callable
        Called with (case, "") after each pair, and with (None, message) for a damaged case.

    Returns
    -------
    list of cases
        Of the whole shard.

    Raises
    ------
    InputError
        If a case cannot be written.  Errors of a pair are saved as "error" in its case.
    """
    settings = plan["settings"]
    measures = selected(surface=settings["surface"], definitions=settings["definitions"])
    where = machine() | {
        "device": find_device(settings["device"]).type,
        "threads": torch.get_num_threads(),
    }
    read = lru_cache(maxsize=CACHED_SCANS)(dataset.read)

    def finished_case(key: str) -> Case | None:
        try:
            case = folder.read_case(int(key), tuple(plan["pairs"][int(key) - 1]))
        except InputError as error:
            report_case(None, f"{error} The pair is registered again.")
            return None
        return None if case is None or case["error"] else case

    def run_case(key: str) -> Case:
        moving, fixed = plan["pairs"][int(key) - 1]
        about = {"number": int(key), "moving": moving, "fixed": fixed}
        for role in ("moving", "fixed"):
            about[f"{role}_subject"] = dataset.scan(about[role]).subject
        case = _case(dataset, read, (moving, fixed), method, measures)
        return about | case | {"machine": where}

    found = []
    keys = [f"{number:04d}" for number in shard.share(len(plan["pairs"]))]
    for case, new in folder.complete(keys, finished_case, run_case):
        if new:
            report_case(case, "")
        found.append(case)
    return found


def _case(
    dataset: Dataset,
    read: Callable[[str], tuple[Volume, Volume | None]],
    names: tuple[str, str],
    method: Method,
    measures: Collection[str],
) -> dict[str, Any]:
    """Run one pair: its seconds, warnings and stages, or its error."""
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
    except Exception as error:  # the other pairs continue; the error is saved in the case
        text = " ".join(str(error).split()) or "no message"
        case["error"] = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return case
