"""The folder of an evaluation: plan, one file per pair, resumed by the same command.

Several processes may work in it at once.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from napari_shmoareg.datasets import PairFiles, Split, choose_pairs, split_dataset
from napari_shmoareg.datasets.dataset import DatasetChoice
from napari_shmoareg.datasets.splits import read_division
from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation.methods import used_versions
from napari_shmoareg.geometry import Volume, VolumePair
from napari_shmoareg.io import files
from napari_shmoareg.io.files import check_is_folder, check_new_folder, writing
from napari_shmoareg.io.landmarks import read_landmarks
from napari_shmoareg.io.machine import machine, versions
from napari_shmoareg.io.model_card import checksum_of
from napari_shmoareg.io.report import plain
from napari_shmoareg.io.untrusted import parse_json, read_object, user_path
from napari_shmoareg.metrics.measure import Method, Scoring, labels_of, measure_pair
from napari_shmoareg.registration.resources import find_device
from napari_shmoareg.settings import RegistrationSettings
from napari_shmoareg.training.plan import read_plan
from napari_shmoareg.training.run import RunFolder

if TYPE_CHECKING:
    from napari_shmoareg.datasets import Dataset


PLAN, CASES = "evaluation.json", "cases"
FORMAT = "shmoareg-evaluation-1"
Case = dict[str, Any]
_PARTS = ("means", "labels")
_KEYS = {
    "number",
    "moving",
    "fixed",
    "moving_subject",
    "fixed_subject",
    "seconds",
    "error",
    "stages",
}


class EvaluationFolder:
    """Where an evaluation stands.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path).absolute()
        self.plan = self.path / PLAN
        self.cases = self.path / CASES

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Make the folder and write the plan, or see that it was begun with the same one.

        Processes that begin at the same moment agree on one plan: it appears in one move that fails
        where there is one already.

        Raises
        ------
        InputError
            If it was begun with another plan, holds other things, or cannot be made.
        """
        for _ in range(3):
            if self.plan.is_file():
                break
            if not self._is_free():
                continue  # another process began just now
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                if self._create(plan):
                    break
            except OSError as error:
                raise InputError(
                    f"Cannot write into {self.path}: {error.strerror}. Name another place."
                ) from error
        self._check_same(plan)
        self.cases.mkdir(exist_ok=True)

    def read_plan(self) -> dict[str, Any]:
        """The plan.

        Raises
        ------
        InputError
            If the folder holds no evaluation, or the plan is damaged or of another version.
        """
        if not self.plan.is_file():
            raise InputError(
                f"{self.path} holds no evaluation (there is no {PLAN}). Give a folder that"
                " 'shmoareg evaluate --out' wrote."
            )
        try:
            found = read_object(self.plan, "the plan of an evaluation")
        except InputError as error:
            raise InputError(f"{error} Give another --out.") from error
        if found.get("format") != FORMAT:
            raise InputError(
                f"{self.plan} is of another version of shmoareg (its format is not '{FORMAT}')."
            )
        if not _is_plan(found):
            raise InputError(
                f"{self.plan} is damaged: it lacks what a plan has. Give another --out."
            )
        return found

    def case_file(self, number: int) -> Path:
        """Where the case of a pair stands; the first pair is number 1."""
        return self.cases / f"{number:04d}.json"

    def read_case(self, number: int, pair: tuple[str, str]) -> Case | None:
        """What a pair came to; None if there is nothing yet.

        Raises
        ------
        InputError
            If the file is damaged or of another pair.
        """
        file = self.case_file(number)
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        try:
            case = parse_json(text, file, "what a pair came to")
            if not isinstance(case, dict) or not case.keys() >= _KEYS:
                raise ValueError("it lacks what a case has")
            if not _is_case(case):
                raise ValueError("its values are not of the kind that a case has")
            if (case["number"], case["moving"], case["fixed"]) != (number, *pair):
                raise ValueError("it is of another pair")
        except ValueError as error:
            raise InputError(f"{file} is damaged ({error}).") from error
        return case

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

    def write_case(self, case: Mapping[str, Any]) -> None:
        """Write a case, whole or not at all; NaN becomes null.

        Raises
        ------
        InputError
            If it cannot be written, as on a full disk.
        """
        with writing(self.case_file(case["number"])) as temporary:
            temporary.write_text(json.dumps(plain(case), allow_nan=False) + "\n", encoding="utf-8")

    def seen(self) -> set[tuple[str, int]]:
        """Names and times of all case files, to notice that another process wrote one."""
        found = set()
        for entry in os.scandir(self.cases):
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                found.add((entry.name, entry.stat().st_mtime_ns))
        return found

    def _is_free(self) -> bool:
        """Whether an evaluation can begin here; not if one just has.

        Raises
        ------
        InputError
            If the folder holds other things, or cannot be made.
        """
        check_is_folder(self.path)
        check_new_folder(self.path / "new")
        names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        if PLAN in names:
            return False
        others = sorted(name for name in names if not name.startswith(f".{PLAN}.partial-"))
        if others and not self.plan.is_file():
            raise InputError(
                f"The folder {self.path} is not empty ({len(others)} entries, such as"
                f" '{others[0]}') and holds no evaluation. Nothing there is overwritten: name"
                " another folder, or empty this one."
            )
        return not others

    def _create(self, plan: Mapping[str, Any]) -> bool:
        """Write the plan unless there is one; whether this process did."""
        hidden = files.hidden(self.path, PLAN)
        hidden.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        try:
            os.link(hidden, self.plan)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the last of two that begin at once stays
            os.replace(hidden, self.plan)
        finally:
            files.remove(hidden)
        return True

    def _check_same(self, plan: Mapping[str, Any]) -> None:
        then = self.read_plan()
        differ = [f"other {key}" for key in plan if plan[key] != then.get(key)]
        if differ:
            raise InputError(
                f"The evaluation in '{self.path}' was begun with {' and '.join(differ)} (see"
                f" {self.plan}); go on with what it was begun with, or give another --out."
            )


def _is_plan(found: Mapping[str, Any]) -> bool:
    """Whether all that is read of a plan is there, and of its kind."""
    kinds = {
        "dataset": dict,
        "part": str,
        "split": str,
        "method": str,
        "settings": dict,
        "pairs": list,
        "versions": dict,
    }
    weights, pairs = found.get("weights"), found.get("pairs")
    return (
        all(isinstance(found.get(key), kind) for key, kind in kinds.items())
        and isinstance(found["dataset"].get("path"), str)
        and "weights" in found
        and (
            weights is None or (isinstance(weights, dict) and isinstance(weights.get("name"), str))
        )
        and all(
            isinstance(p, list) and len(p) == 2 and all(isinstance(n, str) for n in p)
            for p in pairs or ()
        )
    )


def _is_case(case: Mapping[str, Any]) -> bool:
    """Whether all that is read of a case is of its kind."""
    texts = all(
        isinstance(case[key], str) for key in ("moving", "fixed", "moving_subject", "fixed_subject")
    )
    if (
        not texts
        or not isinstance(case.get("machine", {}), dict)
        or not _is_number(case["seconds"])
        or not isinstance(case["error"], str | None)
    ):
        return False
    warned = case.get("warnings", [])
    if not isinstance(warned, list) or not all(isinstance(text, str) for text in warned):
        return False
    stages = case["stages"]
    if case["error"] or not isinstance(stages, dict):
        return bool(case["error"])
    tables = [
        stage.get(part) if isinstance(stage, dict) else None
        for stage in stages.values()
        for part in _PARTS
    ]
    if not all(isinstance(table, dict) for table in tables):
        return False
    rows = [stage["means"] for stage in stages.values()]
    for stage in stages.values():
        rows += stage["labels"].values()
        if not all(re.fullmatch(r"-?\d{1,18}", label) for label in stage["labels"]):
            return False
    labels = case.get("labels", {"both": []})
    if (
        not isinstance(labels, dict)
        or not set(labels) <= {"both", "only_moving", "only_fixed"}
        or "both" not in labels
    ):
        return False
    if not all(
        isinstance(found, list) and all(isinstance(n, int) for n in found)
        for found in labels.values()
    ):
        return False
    return all(map(_is_row, rows))


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(_is_number(value) for value in row.values())


def _is_number(value: object) -> bool:
    """A number that numpy holds, or None."""
    if isinstance(value, bool):
        return False
    return (
        value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)
    )


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
    plan = read_plan(folder.told)
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
    plan = {
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
    as_read: dict[str, Any] = json.loads(json.dumps(plan))
    return as_read


def uses(pairs: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """How often the least and the most used scan occur."""
    counts = Counter(name for pair in pairs for name in pair)
    return min(counts.values()), max(counts.values())


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
    scoring = Scoring(settings["surface"], settings["definitions"])
    where = machine() | {
        "device": find_device(settings["device"]).type,
        "threads": torch.get_num_threads(),
    }
    read = lru_cache(maxsize=KEPT)(dataset.read)
    found = []
    for number in shard.share(len(plan["pairs"])):
        moving, fixed = plan["pairs"][number - 1]
        try:
            case = folder.read_case(number, (moving, fixed))
        except InputError as error:
            tell(None, f"{error} The pair is registered again.")
            case = None
        if case is None or case["error"]:
            about = {"number": number, "moving": moving, "fixed": fixed}
            about |= {
                f"{role}_subject": dataset.scan(about[role]).subject for role in ("moving", "fixed")
            }
            case = (
                about | _case(dataset, read, (moving, fixed), method, scoring) | {"machine": where}
            )
            folder.write_case(case)
            tell(case, "")
        found.append(case)
    return found


def _case(
    dataset: Dataset,
    read: Callable[[str], tuple[Volume, Volume | None]],
    names: tuple[str, str],
    method: Method,
    scoring: Scoring,
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
        case["stages"] = measure_pair(pair, result, scoring, points)  # type: ignore[arg-type]
    except Exception as error:  # one pair of a long night: it is told and kept in its case
        text = " ".join(str(error).split()) or "no message"
        case["error"] = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return case
