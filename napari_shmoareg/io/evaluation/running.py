"""Pairs registered and measured one after the other, each kept before the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from napari_shmoareg.analysis.evaluation import Method, Scoring, labels_of, measure_pair
from napari_shmoareg.engine.device import find_device
from napari_shmoareg.geometry import InputError, Volume, VolumePair
from napari_shmoareg.io.datasets import read_landmarks
from napari_shmoareg.io.evaluation.folder import Case, EvaluationFolder
from napari_shmoareg.io.machine import machine

if TYPE_CHECKING:
    from napari_shmoareg.io.datasets import Dataset

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
        Called after each pair with its case and nothing, and with None and a word on a damaged case.

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
    where = machine() | {"device": find_device(settings["device"]).type, "threads": torch.get_num_threads()}
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
            about |= {f"{role}_subject": dataset.scan(about[role]).subject for role in ("moving", "fixed")}
            case = about | _case(dataset, read, (moving, fixed), method, scoring) | {"machine": where}
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
