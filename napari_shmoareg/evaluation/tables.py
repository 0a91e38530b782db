"""Tables of an evaluation: means and spreads, per pair and per label."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation.comparison import (
    CAUTION,
    SUBJECTS,
    PairedTest,
    Spread,
    compare,
    is_worse,
    markdown_list,
    table_head,
    table_line,
)
from napari_shmoareg.evaluation.comparison import PAIRS as OVER_PAIRS
from napari_shmoareg.evaluation.run import Case, EvaluationFolder
from napari_shmoareg.geometry import LabelNames
from napari_shmoareg.io.files import atomic_write, check_name
from napari_shmoareg.io.untrusted import printable
from napari_shmoareg.metrics import SharedLabels
from napari_shmoareg.metrics.measure import (
    MEASURES,
    OTHER_PER_LABEL,
    PER_LABEL,
    STAGES,
    columns_of,
    label_rows,
    pair_rows,
)

Row = Mapping[str, Any]
ALL = "mean"  # in place of a label: the mean over a pair's labels
STAGE_WORDS = {
    "start": "start (headers)",
    "affine": "after the affine",
    "after": "after registration",
}


@dataclass(frozen=True)
class Summary:
    """One measure at one stage, over pairs.

    Attributes
    ----------
    stage, label, measure : str
        The label is "mean" for means over the labels of a pair and for measures without labels.
    spread : Spread
    name : str
        Of the label; empty if it has none.
    """

    stage: str
    label: str
    measure: str
    spread: Spread
    name: str = ""

    @property
    def text(self) -> str:
        """Format as "mean ± SD"; the mean alone for one pair."""
        return self.spread.format_as(MEASURES[self.measure].form, extremes=False)


def summarise(pairs: Iterable[Row], labels: Iterable[Row] = ()) -> list[Summary]:
    """Summarise all measures, per stage over all labels, then per stage and label.

    Parameters
    ----------
    pairs, labels : iterable of mappings
        From `pair_rows` and `label_rows`; rows with an error, None and NaN are left out.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in pairs:
        if not row["error"]:
            groups.setdefault((row["stage"], ALL), []).append(row)
    per_label: dict[tuple[str, int], list[Row]] = {}
    for row in labels:
        per_label.setdefault((row["stage"], int(row["label"])), []).append(row)
    order = sorted(per_label, key=lambda key: (STAGES.index(key[0]), key[1]))
    groups |= {(stage, str(label)): per_label[stage, label] for stage, label in order}
    found = []
    for (stage, label), rows in sorted(
        groups.items(), key=lambda item: (item[0][1] != ALL, STAGES.index(item[0][0]))
    ):
        for measure in MEASURES:
            values = np.array(
                [row[measure] for row in rows if row.get(measure) is not None], dtype=np.float64
            )
            values = values[~np.isnan(values)]
            if values.size:
                found.append(Summary(stage, label, measure, Spread.of(values)))
    return found


def worse_than_start(pairs: Iterable[Row]) -> tuple[int, int]:
    """Number of pairs that ended worse than their start, and number of pairs compared.

    By Dice, else landmarks, else correlation.
    """
    ends: dict[tuple[str, str], dict[str, Row]] = {}
    for row in pairs:
        if not row["error"]:
            ends.setdefault((row["moving"], row["fixed"]), {})[row["stage"]] = row
    worse = compared = 0
    for stages in ends.values():
        if "start" not in stages or "after" not in stages:
            continue
        outcome = is_worse(stages["after"], stages["start"])
        compared += outcome is not None
        worse += bool(outcome)
    return worse, compared


def stage_table(summaries: Sequence[Summary]) -> list[str]:
    """Markdown lines: a row per stage, a column per measure, mean ± SD."""
    chosen = [s for s in summaries if s.label == ALL]
    columns = [name for name in MEASURES if any(s.measure == name for s in chosen)]
    rows = [stage for stage in STAGES if any(s.stage == stage for s in chosen)]
    cells = {(s.stage, s.measure): s.text for s in chosen}
    counts = {stage: max(s.spread.n for s in chosen if s.stage == stage) for stage in rows}
    lines = table_head(["", "pairs", *(MEASURES[name].words for name in columns)])
    for stage in rows:
        lines.append(
            table_line(
                [
                    STAGE_WORDS[stage],
                    str(counts[stage]),
                    *(cells.get((stage, name), "") for name in columns),
                ]
            )
        )
    return lines


def label_table(summaries: Sequence[Summary], names: LabelNames | None = None) -> list[str]:
    """Markdown lines: a row per label, final measures and initial Dice; empty without labels."""
    named = names or LabelNames()
    chosen = [s for s in summaries if s.label != ALL]
    labels = list(dict.fromkeys(s.label for s in chosen))
    if not labels:
        return []
    columns = [
        name for name in (*PER_LABEL, *OTHER_PER_LABEL) if any(s.measure == name for s in chosen)
    ]
    cells = {(s.stage, s.label, s.measure): s for s in chosen}
    heads = ["label", "pairs", "Dice at the start", *(MEASURES[name].words for name in columns)]
    lines = table_head(heads)
    for label in labels:
        known = [cells.get(("after", label, name)) for name in columns]
        start = cells.get(("start", label, "dice"))
        counts = [s.spread.n for s in known if s is not None]
        written = ["" if s is None else s.text for s in (start, *known)]
        words = named.describe(int(label)).replace("|", "/")
        lines.append(table_line([words, str(max(counts, default=0)), *written]))
    return lines


def definition_lines(summaries: Sequence[Summary]) -> list[str]:
    """Markdown lines: definitions of the measures in the tables."""
    used = {s.measure for s in summaries}
    return [
        f"- **{MEASURES[name].words}**: {MEASURES[name].definition}"
        for name in MEASURES
        if name in used
    ]


def comparison_page(
    tests: Sequence[PairedTest], first: str, second: str, notes: Sequence[str]
) -> str:
    """Markdown page with the tests of two evaluations, called `first` and `second`."""
    parts = [f"# {first} against {second}", *notes]
    for over in (OVER_PAIRS, SUBJECTS):
        chosen = [test for test in tests if test.over == over]
        heads = [
            "measure",
            "n",
            "median, first",
            "median, second",
            "median difference",
            "p",
            "result",
        ]
        lines = table_head(heads)
        for test in chosen:
            measure = MEASURES[test.measure]
            numbers = [f"{value:{measure.form}}" for value in (test.first, test.second)]
            p = "" if math.isnan(test.p) else f"{test.p:.2g}"
            difference = f"{test.difference:+{measure.form}}"
            lines.append(
                table_line([measure.words, str(test.n), *numbers, difference, p, test.sentence])
            )
        if chosen:
            parts += [f"## Over {over}", "\n".join(lines)]
    words = "Two-sided Wilcoxon signed-rank tests of first minus second, after registration."
    return "\n\n".join([*parts, f"{words} {CAUTION}"]) + "\n"


def summary_row(summary: Summary) -> dict[str, Any]:
    """Table row, with the definition of the measure."""
    about = {"stage": summary.stage, "label": summary.label, "measure": summary.measure}
    last = {"definition": MEASURES[summary.measure].definition, "name": summary.name}
    return about | asdict(summary.spread) | last


PAIRS, LABELS, SUMMARY, PAGE = "pairs.csv", "labels.csv", "summary.csv", "summary.md"
_ABOUT = ("case", "moving", "fixed", "moving_subject", "fixed_subject", "stage")


@dataclass(frozen=True)
class WrittenTables:
    """Contents of the written tables.

    Attributes
    ----------
    summaries : list of Summary
    pairs, done, failed : int
        Number of pairs in the plan, with a case, and with an error.
    damaged : list of str
        Errors of cases that could not be read.
    names : LabelNames
    """

    summaries: list[Summary]
    pairs: int
    done: int
    failed: int
    damaged: list[str]
    names: LabelNames = field(default_factory=LabelNames)


Naming = Callable[[Collection[int]], LabelNames]


def write_tables(
    folder: EvaluationFolder, plan: Mapping[str, Any], naming: Naming | None = None
) -> WrittenTables:
    """Write all tables from the existing cases; repeat if another process wrote a case meanwhile.

    Parameters
    ----------
    folder : EvaluationFolder
    plan : mapping
    naming : callable, optional
        Returns the `LabelNames` of the labels that occur.

    Raises
    ------
    InputError
        If they cannot be written.
    """
    while True:
        snapshot = folder.snapshot()
        cases, damaged = folder.read_cases(plan)
        pairs = [row for case in cases for row in pair_rows(case)]
        labels = [row for case in cases for row in label_rows(case)]
        in_cases = {n for case in cases for side in _label_sets(case) for n in side}
        occurring = sorted(in_cases | {row["label"] for row in labels})
        names = LabelNames() if naming is None else naming(occurring).within(occurring)
        for row in labels:
            row["name"] = names.get(row["label"])
        summaries = [
            s if s.label == ALL else replace(s, name=names.get(int(s.label)))
            for s in summarise(pairs, labels)
        ]
        failed = sum(bool(case["error"]) for case in cases)
        written = WrittenTables(summaries, len(plan["pairs"]), len(cases), failed, damaged, names)
        _write(folder.path / PAIRS, as_csv(pairs, (*_ABOUT, *columns_of(pairs), "error")))
        if labels:
            about = ("case", "moving", "fixed", "stage", "label", "in")
            _write(folder.path / LABELS, as_csv(labels, (*about, *columns_of(labels), "name")))
        rows = [summary_row(s) for s in summaries]
        _write(
            folder.path / SUMMARY,
            as_csv(rows, tuple(rows[0]) if rows else ("stage", "label", "measure")),
        )
        _write(folder.path / PAGE, summary_page(plan, cases, pairs, written))
        if folder.snapshot() == snapshot:
            return written


def write_comparison(
    folder: EvaluationFolder, other: EvaluationFolder
) -> tuple[list[PairedTest], Path]:
    """Test an evaluation against another one on their common pairs; return the tests and the page.

    Raises
    ------
    InputError
        If one is no evaluation, both are the same, or they have no pair in common.
    """
    if folder.path.resolve() == other.path.resolve():
        raise InputError(f"{other.path} is the evaluation itself; give another one to --against.")
    plans = folder.read_plan(), other.read_plan()
    both = [
        evaluation.read_cases(plan)[0]
        for evaluation, plan in zip((folder, other), plans, strict=True)
    ]
    rows = [[row for case in cases for row in pair_rows(case)] for cases in both]
    tests = compare(*rows)
    if not tests:
        raise InputError(
            f"{folder.path} and {other.path} have no finished pair in common: pairs are matched by"
            " the names of their scans."
        )
    page = comparison_file(folder, other)
    table = [test.row() for test in tests]
    _write(page.with_suffix(".csv"), as_csv(table, tuple(table[0])))
    _write(
        page,
        comparison_page(
            tests, folder.path.name, other.path.name, _notes(folder, other, plans, both)
        ),
    )
    return tests, page


def comparison_file(folder: EvaluationFolder, other: EvaluationFolder) -> Path:
    """Path of the page of `write_comparison`.

    Raises
    ------
    InputError
        If the name is too long.
    """
    page = folder.path / f"against-{other.path.name}.md"
    check_name(page.with_suffix(".csv"))
    return page


def summary_page(
    plan: Mapping[str, Any],
    cases: Sequence[Case],
    pairs: Sequence[Mapping[str, Any]],
    written: WrittenTables,
) -> str:
    """The text of summary.md."""
    state = (
        ""
        if written.done >= written.pairs
        else f" **Not finished: {written.done} of {written.pairs} pairs.**"
    )
    count = "one pair" if written.pairs == 1 else f"{written.pairs} pairs"
    parts = [
        f"# Evaluation: {describe_plan(plan)}",
        f"{count}, listed in evaluation.json; every number is in {PAIRS} and {LABELS}.{state}",
    ]
    if written.summaries:
        worse, compared = worse_than_start(pairs)
        parts += ["\n".join(stage_table(written.summaries))]
        parts += [
            "Mean ± SD over pairs; a pair's Dice and surface distances are the means over the"
            " labels that both of its images have. "
            + (f"{worse} of {compared} pairs ended worse than their start." if compared else "")
        ]
    names, labels = written.names, label_table(written.summaries, written.names)
    if labels:
        parts += ["## Per label, after registration", "\n".join(labels)]
        parts += [f"Names of the labels: from {names.source}."] if names else []
    elif any(not case["error"] for case in cases):
        parts += [
            "The scans have no labels (or one scan of each pair has none): see the correlation for"
            " their similarity."
        ]
    if written.summaries:
        parts += ["## Definitions", "\n".join(definition_lines(written.summaries))]
        parts += [
            "On the fixed image's own grid; the original labels are warped by nearest neighbour in"
            " one interpolation."
        ]
    incomplete = [case for case in cases if not case["error"] and _has_missing_labels(case)]
    if incomplete:
        listed = [
            f"- {c['moving']} onto {c['fixed']}: {_label_sets(c).describe(names)}"
            for c in incomplete
        ]
        parts += ["## Labels missing in one image of a pair (not in the means)", "\n".join(listed)]
    failures = [f"- {c['moving']} onto {c['fixed']}: {c['error']}" for c in cases if c["error"]]
    if failures or written.damaged:
        damaged = [f"- {text}" for text in written.damaged]
        parts += [
            "## Failed",
            "\n".join([*failures, *damaged]),
            "Run the same command to try them again.",
        ]
    warnings = Counter(text for case in cases for text in case.get("warnings", ()))
    if warnings:
        parts += [
            "## Warnings",
            "\n".join(f"- {text} ({number} pairs)" for text, number in warnings.most_common(10)),
        ]
    about = {"data set": plan["dataset"]["path"], "part": plan["part"], "split": plan["split"]}
    weights = plan["weights"] or {}
    about |= {
        "weights": weights.get("name", "none"),
        "SHA-256 of the weights": weights.get("sha256", "none"),
    }
    parts += ["## Evaluation settings", markdown_list(about | plan["settings"])]
    parts += ["## Machine and versions", _machines(cases), markdown_list(plan["versions"])]
    return "\n\n".join(parts) + "\n"


def _label_sets(case: Case) -> SharedLabels:
    """Labels of both images of a case; empty for cases of an earlier version."""
    return SharedLabels(
        **{key: tuple(found) for key, found in (case.get("labels") or {"both": ()}).items()}
    )


def _has_missing_labels(case: Case) -> bool:
    return bool(_label_sets(case).missing)


def describe_plan(plan: Mapping[str, Any]) -> str:
    """Short description: the method and its weights."""
    weights = plan["weights"]
    return plan["method"] + ("" if weights is None else f" with {Path(weights['name']).name}")


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV text; missing values, None and NaN are empty."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {key: row.get(key) for key in columns}
        writer.writerow(
            {key: "" if value is None or value != value else value for key, value in cells.items()}
        )
    return file.getvalue()


def _notes(
    folder: EvaluationFolder,
    other: EvaluationFolder,
    plans: tuple[Mapping[str, Any], Mapping[str, Any]],
    both: Sequence[Sequence[Case]],
) -> list[str]:
    """Notes on both evaluations and on differences that affect the comparison."""
    names = folder.path.name, other.path.name
    notes = [
        f"{name}: {describe_plan(plan)}, {len(cases)} pairs."
        for name, plan, cases in zip(names, plans, both, strict=True)
    ]
    if plans[0]["dataset"] != plans[1]["dataset"]:
        notes.append(
            f"**The data sets were specified differently** ({plans[0]['dataset']['path']}, "
            f"{plans[1]['dataset']['path']}): pairs are matched by name alone."
        )
    unfinished = [
        n
        for n, plan, cases in zip(names, plans, both, strict=True)
        if len(cases) < len(plan["pairs"])
    ]
    if unfinished:
        notes.append(
            f"**Not finished: {' and '.join(unfinished)}.** The tests are over the pairs that both"
            " have."
        )
    return notes


def _machines(cases: Sequence[Case]) -> str:
    """Machines that ran the pairs; seconds of different machines should not be averaged."""
    counts = Counter(
        ", ".join(f"{k} {v}" for k, v in case.get("machine", {}).items()) for case in cases
    )
    lines = [f"- {number} pairs: {machine}" for machine, number in counts.most_common()]
    mixed = (
        ["", "**The seconds come from several machines or devices.**"] if len(counts) > 1 else []
    )
    return "\n".join([*lines, *mixed])


def _write(path: Path, text: str) -> None:
    """Write a table atomically; retry if another machine's process removed the partial file."""
    for attempt in range(3):
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(printable(text), encoding="utf-8", newline="")
            return
        except FileNotFoundError:
            if attempt == 2:
                raise
