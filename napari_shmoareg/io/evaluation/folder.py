"""The places in an evaluation's folder; several processes may work in it at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import partial
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.places import check_is_folder, check_new_folder
from napari_shmoareg.io.summary import plain
from napari_shmoareg.io.untrusted import parse_json, read_object, user_path

PLAN, CASES = "evaluation.json", "cases"
FORMAT = "shmoareg-evaluation-1"
Case = dict[str, Any]
_PARTS = ("means", "labels")
_KEYS = {"number", "moving", "fixed", "moving_subject", "fixed_subject", "seconds", "error", "stages"}


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
                raise InputError(f"Cannot write into {self.path}: {error.strerror}. Name another place.") from error
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
                f"{self.path} holds no evaluation (there is no {PLAN}). Give a folder that 'shmoareg evaluate --out' "
                "wrote."
            )
        try:
            found = read_object(self.plan, "the plan of an evaluation")
        except InputError as error:
            raise InputError(f"{error} Give another --out.") from error
        if found.get("format") != FORMAT:
            raise InputError(f"{self.plan} is of another version of shmoareg (its format is not '{FORMAT}').")
        if not _is_plan(found):
            raise InputError(f"{self.plan} is damaged: it lacks what a plan has. Give another --out.")
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
        """All cases that are there, in the order of the plan's pairs, and what is wrong with damaged ones."""
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
                f"The folder {self.path} is not empty ({len(others)} entries, such as '{others[0]}') and holds no "
                "evaluation. Nothing there is overwritten: name another folder, or empty this one."
            )
        return not others

    def _create(self, plan: Mapping[str, Any]) -> bool:
        """Write the plan unless there is one; whether this process did."""
        hidden = partial.hidden(self.path, PLAN)
        hidden.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
        try:
            os.link(hidden, self.plan)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the last of two that begin at once stays
            os.replace(hidden, self.plan)
        finally:
            partial.remove(hidden)
        return True

    def _check_same(self, plan: Mapping[str, Any]) -> None:
        then = self.read_plan()
        differ = [f"other {key}" for key in plan if plan[key] != then.get(key)]
        if differ:
            raise InputError(
                f"The evaluation in '{self.path}' was begun with {' and '.join(differ)} (see {self.plan}); go on with "
                "what it was begun with, or give another --out."
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
        and (weights is None or (isinstance(weights, dict) and isinstance(weights.get("name"), str)))
        and all(isinstance(p, list) and len(p) == 2 and all(isinstance(n, str) for n in p) for p in pairs or ())
    )


def _is_case(case: Mapping[str, Any]) -> bool:
    """Whether all that is read of a case is of its kind."""
    texts = all(isinstance(case[key], str) for key in ("moving", "fixed", "moving_subject", "fixed_subject"))
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
    tables = [stage.get(part) if isinstance(stage, dict) else None for stage in stages.values() for part in _PARTS]
    if not all(isinstance(table, dict) for table in tables):
        return False
    rows = [stage["means"] for stage in stages.values()]
    for stage in stages.values():
        rows += stage["labels"].values()
        if not all(re.fullmatch(r"-?\d{1,18}", label) for label in stage["labels"]):
            return False
    labels = case.get("labels", {"both": []})
    if not isinstance(labels, dict) or not set(labels) <= {"both", "only_moving", "only_fixed"} or "both" not in labels:
        return False
    if not all(isinstance(found, list) and all(isinstance(n, int) for n in found) for found in labels.values()):
        return False
    return all(map(_is_row, rows))


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(_is_number(value) for value in row.values())


def _is_number(value: object) -> bool:
    """A number that numpy holds, or None."""
    if isinstance(value, bool):
        return False
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)
