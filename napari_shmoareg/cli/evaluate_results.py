"""What an evaluation came to, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from napari_shmoareg.cli.tables import show

if TYPE_CHECKING:
    from rich.table import Table

    from napari_shmoareg.analysis.evaluation_summary import Summary
    from napari_shmoareg.analysis.paired_test import PairedTest
    from napari_shmoareg.io.evaluation.tables import Written

SHOWN_LABELS = 8


def told(case: Mapping[str, Any]) -> str:
    """What one pair came to, on one line."""
    if case["error"]:
        return f"failed: {case['error']}"
    start, after = (case["stages"][stage]["means"] for stage in ("start", "after"))
    key, words = ("dice", "Dice") if _is_number(after.get("dice")) else ("ncc", "NCC")
    before = f"{start[key]:.3f}" if _is_number(start.get(key)) else "unknown"
    value = f"{after[key]:.3f}" if _is_number(after.get(key)) else "unknown"
    over = ""
    if key == "dice" and (labels := case.get("labels")):
        lacking = sorted((*labels["only_moving"], *labels["only_fixed"]))
        named = ", ".join(map(str, lacking[:SHOWN_LABELS])) + (" ..." if len(lacking) > SHOWN_LABELS else "")
        over = f" over {len(labels['both'])} labels" + (f" (in one image only: {named})" if lacking else "")
    return f"{words} {before} to {value}{over}, {case['seconds']:.1f} s"


def show_results(written: Written, out: Path, tests: tuple[list[PairedTest], Path] | None) -> None:
    """Means over pairs, where the tables are, and the outcome of a comparison."""
    if written.summaries:
        show(results_table(written.summaries))
    state = "" if written.done >= written.pairs else f" (so far {written.done} of {written.pairs} pairs)"
    typer.echo(f"\nResults in {out}{state}: summary.md, summary.csv, pairs.csv, labels.csv")
    if tests is None:
        return
    found, page = tests
    typer.echo("")
    from napari_shmoareg.analysis.evaluation import MEASURES

    for test in found:
        typer.echo(f"{MEASURES[test.measure].words}, over {test.over}: {test.says}")
    typer.echo(f"Written to {page}")


def results_table(summaries: list[Summary]) -> Table:
    """Mean ± SD over pairs: a row per measure, a column per stage."""
    from rich.table import Table

    from napari_shmoareg.analysis.evaluation import MEASURES, STAGES
    from napari_shmoareg.analysis.evaluation_summary import ALL, STAGE_WORDS

    chosen = {(s.measure, s.stage): s for s in summaries if s.label == ALL}
    stages = [stage for stage in STAGES if any(s == stage for _, s in chosen)]
    most = max(s.n for s in chosen.values())
    table = Table(title=f"mean ± SD over {most} pairs", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for stage in stages:
        table.add_column(STAGE_WORDS[stage], justify="right")
    for measure, about in MEASURES.items():
        found = [chosen.get((measure, stage)) for stage in stages]
        if any(found):
            table.add_row(about.words, *("" if s is None else s.written for s in found))
    return table


def _is_number(value: float | None) -> bool:
    return value is not None and value == value
