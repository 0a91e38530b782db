"""Process a list of pairs into a folder that the same command can continue."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from napari_shmoareg.cli.console import ProgressCallback, explain, print_note, progress, resumable
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
    """Options of a command that processes a list of pairs.

    Attributes
    ----------
    out : Path
    request : CommandRequest
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
    """The saved result of a pair, with its files from `file_states`."""

    @property
    def files(self) -> Mapping[str, Sequence[int]]: ...

    def row(self) -> dict[str, Any]:
        """As a JSON row."""
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
    """Process the pairs that the folder does not have yet, and yield all finished ones.

    Parameters
    ----------
    listed : PairList
    plan : mapping
        Everything that the results depend on.
    options : ListOptions
    parse : callable
        Parses a result from its row.
    do : callable
        Processes a pair, given its number (from 0) and a progress callback. Exceptions are saved as
        the failure of the pair, and the same command tries it again.
    verb : (str, str)
        The verb for messages: ("register", "registered").
    check : callable, optional
        Called first with the numbers still to do; exceptions end the command.

    Yields
    ------
    (dict of number to result, dict of number to error)

    Raises
    ------
    InputError
        If the folder was started with other inputs, a row is damaged, a file has changed, or every
        pair failed.
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
                    f"None of the {count} pairs could be {verb[1]}. The first error: {failures[0]}"
                )
            yield dict(sorted(done.items())), failures


def _in_list(report: ProgressCallback, number: int, count: int) -> ProgressCallback:
    """Convert the fraction of one pair to that of the list."""
    return lambda title, done: report(
        f"pair {number + 1} of {count}, {title}", (number + done) / count
    )


def _check_unchanged(
    work: WorkFolder, results: Mapping[str, PairResult], verb: tuple[str, str]
) -> None:
    """Reject saved results if the size or time of their files has changed."""
    changed: dict[str, list[str]] = {}
    for key, result in results.items():
        names = [f for f, old in result.files.items() if file_states([Path(f)])[f] != list(old)]
        if names:
            changed[key] = names
    if changed:
        names = list(dict.fromkeys(name for found in changed.values() for name in found))
        rows = ", ".join(f"{key}.json" for key in changed)
        raise InputError(
            f"The inspection in '{work.path}' is out of date: {', '.join(names)} changed after"
            f" the pairs were {verb[1]}. Delete {rows} in {work.rows} to {verb[0]} those pairs"
            " again, or give another --out."
        )


def file_states(files: Iterable[Path | None]) -> dict[str, list[int]]:
    """Size in bytes and modification time (ns) of files, by absolute path."""
    found = {str(path.resolve()): path.stat() for path in files if path is not None}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def list_plan(
    listed: PairList, options: ListOptions, weights: str, used: Callable[[PairFiles], Any]
) -> dict[str, Any]:
    """Everything that the results of a list depend on; `used` gives the relevant files of a
    pair.
    """
    request = options.request
    return {
        # other weights of the same name give other results
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
    """Name and checksum of weights."""
    return {"name": Path(name).name, "sha256": checksum_of(name)}


def list_summary(
    plan: Mapping[str, Any], pairs: Mapping[int, dict[str, Any]], failures: Mapping[int, str]
) -> dict[str, Any]:
    """The pairs in a summary: counts, each pair, failures."""
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
    """Write figures as PNG and SVG with metadata.

    Parameters
    ----------
    folder : Path
    figures : mapping of name to (figure, title, caption)
    plan : mapping
    names : sequence of (moving, fixed)
        Names of the pairs.
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
