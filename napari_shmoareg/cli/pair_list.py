"""A list of pairs worked through one by one, in a folder that the same command goes on with."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from napari_shmoareg.cli.console import ProgressCallback, explain, progress, resumable, print_note
from napari_shmoareg.cli.options import CommandRequest
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import ENDINGS, write_figure
from napari_shmoareg.io.machine import versions
from napari_shmoareg.io.model_card import checksum_of, choose_device
from napari_shmoareg.io.work_folder import WorkFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from napari_shmoareg.datasets import PairFiles, PairList


PLAN, PAIRS = "inspect.json", "pairs"


@dataclass(frozen=True)
class ListOptions:
    """The options of a command that works through a list of pairs.

    Attributes
    ----------
    out : Path
    request : Running
    nan, channel
        As for `read_pair`.
    quiet, debug : bool
    """

    out: Path
    request: CommandRequest
    nan: float | None = None
    channel: int | None = None
    quiet: bool = False
    debug: bool = False


class PairResult(Protocol):
    """What is kept of a pair, and the files it was read from, as of `file_states`."""

    @property
    def files(self) -> Mapping[str, Sequence[int]]: ...

    def row(self) -> dict[str, Any]:
        """As JSON."""
        ...


R = TypeVar("R", bound=PairResult)


@contextmanager
def process_pairs(
    listed: PairList,
    plan: Mapping[str, Any],
    options: ListOptions,
    parse: Callable[[dict[str, Any]], R],
    do: Callable[[int, ProgressCallback], R],
    verb: tuple[str, str],
    check: Callable[[Sequence[int], ProgressCallback], None] = lambda numbers, report: None,
) -> Iterator[tuple[dict[int, R], dict[int, str]]]:
    """Do the pairs of a list that the folder does not have yet, and give all that are done.

    Parameters
    ----------
    listed : PairList
    plan : mapping
        All that the results depend on.
    options : ListOptions
    parse : callable
        Makes a result of its row.
    do : callable
        Given the number of a pair, from 0, and a report of its own; what it raises is kept as the
        pair's failure, and the same command tries it again.
    verb : (str, str)
        What is done, for messages: ("register", "registered").
    check : callable, optional
        Given the numbers that are left to do; what it raises ends the command.

    Yields
    ------
    (dict of number to result, dict of number to error)

    Raises
    ------
    InputError
        If the folder was begun with something else, a row is damaged, a file has changed since, or
        every pair failed.
    """
    count = len(listed)
    remedy = f" Delete it; the same command then {verb[0]}s this pair again."
    with WorkFolder(options.out, PLAN, PAIRS, "inspection", remedy).begin(plan) as work:
        keys = {number: f"{number + 1:04d}" for number in range(count)}
        done: dict[int, R] = {}
        for number, key in keys.items():
            found = work.read(key, lambda row: None if "error" in row else parse(row))
            if found is not None:
                done[number] = found
        _check_unchanged(work, {keys[number]: result for number, result in done.items()}, verb)
        failures: dict[int, str] = {}
        left = [number for number in keys if number not in done]
        with resumable(lambda: len(done), count, options.out):
            with progress(options.quiet) as report:
                report("loading", 0.0)
                check(left, report)
                for number in left:
                    try:
                        result = do(number, _in_list(report, number, count))
                    except Exception as error:
                        if options.debug:
                            traceback.print_exception(error, file=sys.stderr)
                        failures[number] = explain(error).removeprefix("Error: ")
                        print_note(f"pair {number + 1} failed: {failures[number]}")
                        work.write(keys[number], {"error": failures[number]})
                    else:
                        work.write(keys[number], result.row())
                        done[number] = result
            if not done:
                raise InputError(
                    f"None of the {count} pairs could be {verb[1]}. The first: {failures[0]}"
                )
            yield dict(sorted(done.items())), failures


def _in_list(report: ProgressCallback, number: int, count: int) -> ProgressCallback:
    """From the fraction of one pair to that of the list."""
    return lambda title, done: report(
        f"pair {number + 1} of {count}, {title}", (number + done) / count
    )


def _check_unchanged(
    work: WorkFolder, results: Mapping[str, PairResult], verb: tuple[str, str]
) -> None:
    """Refuse results of files that have another size or time now."""
    changed: dict[str, list[str]] = {}
    for key, result in results.items():
        names = [f for f, old in result.files.items() if file_states([Path(f)])[f] != list(old)]
        if names:
            changed[key] = names
    if changed:
        names = list(dict.fromkeys(name for found in changed.values() for name in found))
        rows = ", ".join(f"{key}.json" for key in changed)
        raise InputError(
            f"The inspection in '{work.path}' holds pairs of other files: since they were"
            f" {verb[1]}, {', '.join(names)} changed. Delete {rows} in {work.rows} to"
            f" {verb[0]} those pairs again, or give another --out."
        )


def file_states(files: Iterable[Path | None]) -> dict[str, list[int]]:
    """Size in bytes and time of the last change (ns) of files, by their absolute path."""
    found = {str(path.resolve()): path.stat() for path in files if path is not None}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def list_plan(
    listed: PairList, options: ListOptions, weights: str, used: Callable[[PairFiles], Any]
) -> dict[str, Any]:
    """All that the results of a list depend on, whatever is measured; `used` gives the files of a
    pair that matter.
    """
    request = options.request
    return {
        # others of the same name give other numbers
        "weights": weights_in_plan(weights),
        "settings": {
            "affine": request.affine,
            "contrast": request.contrast,
            "diffeomorphic": request.diffeomorphic,
            "size": request.size,
            "device": choose_device(request.device),
            "nan": listed.nan,
            "channel": listed.channel,
        },
        "pairs": [
            [None if path is None else str(path.resolve()) for path in used(files)]
            for files in listed.files
        ],
        "versions": versions(),
    }


def weights_in_plan(name: str) -> dict[str, str]:
    """The name of weights, and the checksum by which others of that name are noticed."""
    return {"name": Path(name).name, "sha256": checksum_of(name)}


def list_summary(
    plan: Mapping[str, Any], pairs: Mapping[int, dict[str, Any]], failures: Mapping[int, str]
) -> dict[str, Any]:
    """What a summary says of the pairs: how many, each of them, and what failed."""
    return {
        "pairs_listed": len(plan["pairs"]),
        "pairs_done": len(pairs),
        "pairs": [{"pair": number + 1} | pair for number, pair in pairs.items()],
        "failed": [
            {"pair": number + 1, "files": plan["pairs"][number], "error": error}
            for number, error in failures.items()
        ],
    }


def write_figures(
    folder: Path,
    figures: Mapping[str, tuple[Figure, str, str]],
    plan: Mapping[str, Any],
    names: Sequence[tuple[str, str]],
) -> None:
    """Write figures as PNG and SVG, with what they show.

    Parameters
    ----------
    folder : Path
    figures : mapping of name to (figure, title, caption)
    plan : mapping
    names : sequence of (moving, fixed)
        Of the pairs.
    """
    about = {
        "Software": f"shmoareg {versions()['shmoareg']}",
        "Weights": f"{plan['weights']['name']} (SHA-256 {plan['weights']['sha256']})",
        "Pairs": f"{len(names)}, moving to fixed: " + "; ".join(map(" to ".join, names)),
        "Settings": json.dumps(plan["settings"]),
    }
    for name, (figure, title, caption) in figures.items():
        for ending in ENDINGS:
            write_figure(
                figure, folder / f"{name}{ending}", {"Title": title, "Caption": caption} | about
            )
