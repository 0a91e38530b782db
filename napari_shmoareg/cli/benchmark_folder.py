"""The folder of a benchmark: its plan, its rows, its summary and plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation.isolated_run import IsolatedRun
from napari_shmoareg.evaluation.methods import used_versions
from napari_shmoareg.io.machine import machine
from napari_shmoareg.io.model_card import checksum_of
from napari_shmoareg.io.untrusted import MAX_TABLE, printable, read_csv
from napari_shmoareg.io.work_folder import begin_work

if TYPE_CHECKING:
    from rich.table import Table

    from napari_shmoareg.evaluation.comparison import MethodSummary


PLAN, ROWS, SUMMARY, PLOT = "benchmark.json", "pairs.csv", "summary.md", "plot.png"
MEASURED = (
    *(
        "dice",
        "assd_mm",
        "hd95_mm",
        "landmark_mm",
        "folding_percent",
        "sdlogj",
        "seconds",
        "memory_mib",
    ),
    "deforming_seconds",
    "labels",
    "error",
)
COLUMNS = ("pair", "moving", "fixed", "method", *MEASURED)
FILES = ("moving", "fixed", "moving_labels", "fixed_labels", "landmarks")

NOTES = """\
Mean ± SD over pairs (least to most). **Dice**, ASSD and HD95 are means over the labels that both
images have, carried by nearest neighbour in one interpolation, on the fixed grid. **Landmarks** is
the mean distance of theirs per pair. **Folding** and SDlogJ are of the whole map, the affine
included, on the fixed grid. **Seconds** are of the method alone: reading, imports and scoring are
not in it, the alignment is, and so are the similarities that our own method reports;
deforming_seconds in pairs.csv are those of network and refinement alone. **Memory** is the most
that the method's process held until it was done, or a program that it ran: interpreter, libraries
and images included, a GPU's memory not. A pair counts as worse than its start by Dice, or by the
landmarks where it has no labels. Each method ran in a process of its own, one after the other."""


def make_plan(
    common: IsolatedRun, names: Sequence[str], trials: Sequence[IsolatedRun]
) -> dict[str, Any]:
    """All that the numbers depend on, as it stands in benchmark.json."""
    from napari_shmoareg.io.machine import versions

    settings = {
        key: value for key, value in asdict(common).items() if key not in ("method", *FILES)
    }
    # as in plans of the last release: always these, or without this method
    settings["seconds"] = settings.pop("refine_seconds")
    del settings["affine"], settings["keep"]
    if common.unigradicon_weights is None:
        del settings["unigradicon_weights"]
    for name in ("weights", "unigradicon_weights"):
        if settings.get(name) is not None:
            settings[f"{name}_sha256"] = checksum_of(settings[name])
    listed = [[getattr(trial, name) for name in FILES] for trial in trials[:: len(names)]]
    used = {name: number for name, number in versions().items() if number is not None}
    for name in names:
        used |= used_versions(name)
    plan: dict[str, Any] = {"methods": list(names), "settings": settings, "versions": used}
    plan |= {"machine": machine(), "pairs": listed}
    plain: dict[str, Any] = json.loads(json.dumps(plan))
    return plain


def begin(out: Path, plan: Mapping[str, Any]) -> None:
    """Make the folder, or see that it was begun with the same plan.

    Raises
    ------
    InputError
        If it was begun with another one, holds other things, or cannot be made.
    """
    begin_work(out / PLAN, plan, "benchmark")


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The rows that are there already.

    Raises
    ------
    InputError
        If they are not such as this version writes.
    """
    if not (out / ROWS).is_file():
        return []
    columns, rows = read_csv(out / ROWS, "the rows of a benchmark", limit=MAX_TABLE)
    if tuple(columns) != COLUMNS:
        raise InputError(
            f"{out / ROWS} has other columns than this version writes; give another --out."
        )
    for line, cells in rows:
        numbers = [cells[key] for key in MEASURED if key not in ("labels", "error")]
        if (
            not cells["pair"].isascii()
            or not cells["pair"].isdigit()
            or not all(map(_is_empty_or_number, numbers))
        ):
            raise InputError(
                f"{out / ROWS}, line {line}, is damaged: a number of a pair, and numbers or nothing"
                " for the measures, were expected. Delete that line; the same command then runs it"
                " again."
            )
    return [cells for _, cells in rows]


def _is_empty_or_number(cell: str) -> bool:
    try:
        return not cell or float(cell) - float(cell) == 0
    except ValueError:
        return False


def write_results(
    out: Path, rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]
) -> list[MethodSummary]:
    """Write the rows, summary.md and plot.png; what the rows come to."""
    from napari_shmoareg.evaluation.comparison import (
        comparison_figure,
        finished_by_all,
        markdown_table,
        network_matters,
        summarise,
    )
    from napari_shmoareg.io.files import write_table, writing

    if rows:
        write_table(rows, out / ROWS)
    summaries = summarise(rows)
    parts = ["# Methods on the same pairs", _progress(rows, plan), markdown_table(summaries)]
    if any(summary.failed for summary in summaries):
        parts += _on_equal_terms(summarise(finished_by_all(rows)))
    if told := network_matters(rows):
        parts += ["## Does the network matter?", told]
    parts += [NOTES]
    lacking = dict.fromkeys(
        f"- pair {r['pair']}: {r['labels']}" for r in rows if "only" in (r.get("labels") or "")
    )
    if lacking:
        parts += ["## Labels that one image of a pair lacks (in no mean)", "\n".join(lacking)]
    failures = [
        f"- pair {row['pair']}, {row['method']}: {row['error']}" for row in rows if row["error"]
    ]
    if failures:
        parts += [
            "## Failed",
            "\n".join(failures),
            f"To try one again, delete its line in {ROWS}; the same command goes on.",
        ]
    parts += ["## Methods", _methods(plan), "## Settings", _listed(plan["settings"])]
    parts += [
        "## Machine and versions",
        _listed(_surroundings() | plan["machine"] | plan["versions"]),
    ]
    with writing(out / SUMMARY) as temporary:
        temporary.write_text(printable("\n\n".join(parts)) + "\n", encoding="utf-8")
    with writing(out / PLOT) as temporary:
        comparison_figure(rows).savefig(temporary, dpi=150)
    return summaries


def told(found: Mapping[str, Any]) -> str:
    """What one run came to, on one line."""
    if found.get("error"):
        return f"failed: {found['error']}"
    from napari_shmoareg.evaluation.comparison import MEASURES

    return ", ".join(
        f"{name} {found[key]:{form}}" for key, (name, form) in MEASURES.items() if key in found
    )


def results_table(summaries: Sequence[MethodSummary]) -> Table:
    """Means over pairs, for a terminal; the spread stands in summary.md."""
    from rich.table import Table

    from napari_shmoareg.evaluation.comparison import MEASURES

    columns = [key for key in MEASURES if any(key in s.measures for s in summaries)]
    table = Table(title="means over pairs", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("pairs", *(MEASURES[key][0] for key in columns), "worse"):
        table.add_column(name, justify="right", no_wrap=name == "pairs")
    for summary in summaries:
        means = (
            format(summary.measures[k].mean, MEASURES[k][1]) if k in summary.measures else ""
            for k in columns
        )
        worse = f"{summary.worse} of {summary.judged}" if summary.judged else ""
        table.add_row(summary.method, summary.counted, *means, worse)
    return table


def _progress(rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> str:
    due = len(plan["pairs"]) * len(plan["methods"])
    state = "" if len(rows) >= due else f" **Not finished: {len(rows)} of {due} runs.**"
    count = len(plan["pairs"])
    return (
        f"{count} pair{'' if count == 1 else 's'}, listed in {PLAN}; every number is in"
        f" {ROWS}.{state}"
    )


def _on_equal_terms(summaries: Sequence[MethodSummary]) -> list[str]:
    """The table over the pairs that every method finished, as the first one is over other pairs per
    method.
    """
    from napari_shmoareg.evaluation.comparison import markdown_table

    if not summaries:
        return ["No pair was finished by every method."]
    count = summaries[0].pairs
    return [
        f"Over the {f'{count} pairs' if count > 1 else 'one pair'} that every method finished:",
        markdown_table(summaries),
    ]


def _methods(plan: Mapping[str, Any]) -> str:
    from napari_shmoareg.evaluation.methods import METHODS

    return "\n".join(f"- {name}: {METHODS[name].says}" for name in plan["methods"])


def _surroundings() -> dict[str, str]:
    import psutil

    total = psutil.virtual_memory().total
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "memory": f"{total / 2**30:.1f} GiB",
    }


def _listed(values: Mapping[str, Any]) -> str:
    return "\n".join(
        f"- {key.replace('_', ' ')}: {'default' if value is None else value}"
        for key, value in values.items()
    )
