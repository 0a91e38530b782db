"""Means, spreads and tables of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from napari_shmoareg.analysis.evaluation import MEASURES, STAGES
from napari_shmoareg.analysis.paired_test import CAUTION, PAIRS, SUBJECTS, PairedTest

Row = Mapping[str, Any]
ALL = "mean"  # in place of a label: the mean over a pair's labels
STAGE_WORDS = {"start": "start (headers)", "affine": "after the affine", "after": "after all"}
PER_LABEL = ("dice", "assd_mm", "hd95_mm", "assd_surfel_mm", "hd95_surfel_mm", "hd95_pooled_mm", "avd_th_mm")


@dataclass(frozen=True)
class Summary:
    """One measure at one stage, over pairs.

    Attributes
    ----------
    stage, label, measure : str
        The label is "mean" for the mean over a pair's labels, and for what has no labels.
    n : int
        Pairs that were measured.
    mean, sd, median, least, most : float
        SD with n - 1; NaN for one pair.
    """

    stage: str
    label: str
    measure: str
    n: int
    mean: float
    sd: float
    median: float
    least: float
    most: float

    @property
    def written(self) -> str:
        """ "mean ± SD"; the mean alone for one pair."""
        form = MEASURES[self.measure].form
        return f"{self.mean:{form}}" + ("" if math.isnan(self.sd) else f" ± {self.sd:{form}}")


def summarise(pairs: Iterable[Row], labels: Iterable[Row] = ()) -> list[Summary]:
    """Summaries of all measures, per stage over all labels, then per stage and label.

    Parameters
    ----------
    pairs, labels : iterable of mappings
        As of `pair_rows` and `label_rows`; rows with an error, None and NaN are left out.
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
    for (stage, label), rows in sorted(groups.items(), key=lambda item: (item[0][1] != ALL, STAGES.index(item[0][0]))):
        for measure in MEASURES:
            values = np.array([row[measure] for row in rows if row.get(measure) is not None], dtype=np.float64)
            values = values[~np.isnan(values)]
            if values.size:
                found.append(_summary(stage, label, measure, values))
    return found


def worse_than_start(pairs: Iterable[Row]) -> tuple[int, int]:
    """Pairs that ended worse than they began, of so many; by Dice, else landmarks, else correlation."""
    ends: dict[tuple[str, str], dict[str, Row]] = {}
    for row in pairs:
        if not row["error"]:
            ends.setdefault((row["moving"], row["fixed"]), {})[row["stage"]] = row
    worse = judged = 0
    for stages in ends.values():
        if "start" not in stages or "after" not in stages:
            continue
        for measure in ("dice", "landmark_mm", "ncc"):
            before, after = (stages[stage].get(measure) for stage in ("start", "after"))
            if before is None or after is None or math.isnan(before) or math.isnan(after):
                continue
            judged += 1
            worse += (after - before) * MEASURES[measure].better < 0
            break
    return worse, judged


def stage_table(summaries: Sequence[Summary]) -> list[str]:
    """Markdown lines: a row per stage, a column per measure, mean ± SD."""
    chosen = [s for s in summaries if s.label == ALL]
    columns = [name for name in MEASURES if any(s.measure == name for s in chosen)]
    rows = [stage for stage in STAGES if any(s.stage == stage for s in chosen)]
    cells = {(s.stage, s.measure): s.written for s in chosen}
    counts = {stage: max(s.n for s in chosen if s.stage == stage) for stage in rows}
    lines = [_line(["", "pairs", *(MEASURES[name].words for name in columns)]), _rule(len(columns) + 2)]
    for stage in rows:
        lines.append(
            _line([STAGE_WORDS[stage], str(counts[stage]), *(cells.get((stage, name), "") for name in columns)])
        )
    return lines


def label_table(summaries: Sequence[Summary]) -> list[str]:
    """Markdown lines: a row per label, its measures after all, and its Dice at the start; empty without labels."""
    chosen = [s for s in summaries if s.label != ALL]
    labels = list(dict.fromkeys(s.label for s in chosen))
    if not labels:
        return []
    columns = [name for name in PER_LABEL if any(s.measure == name for s in chosen)]
    cells = {(s.stage, s.label, s.measure): s for s in chosen}
    heads = ["label", "pairs", "Dice at the start", *(MEASURES[name].words for name in columns)]
    lines = [_line(heads), _rule(len(heads))]
    for label in labels:
        known = [cells.get(("after", label, name)) for name in columns]
        start = cells.get(("start", label, "dice"))
        counts = [s.n for s in known if s is not None]
        written = ["" if s is None else s.written for s in (start, *known)]
        lines.append(_line([label, str(max(counts, default=0)), *written]))
    return lines


def definition_lines(summaries: Sequence[Summary]) -> list[str]:
    """What each measure of the tables is."""
    used = {s.measure for s in summaries}
    return [f"- **{MEASURES[name].words}**: {MEASURES[name].definition}" for name in MEASURES if name in used]


def comparison_page(tests: Sequence[PairedTest], first: str, second: str, notes: Sequence[str]) -> str:
    """Markdown: the tests of two evaluations, `first` and `second` being what each is."""
    parts = [f"# {first} against {second}", *notes]
    for over in (PAIRS, SUBJECTS):
        chosen = [test for test in tests if test.over == over]
        heads = ["measure", "n", "median, first", "median, second", "median difference", "p", "what it says"]
        lines = [_line(heads), _rule(len(heads))]
        for test in chosen:
            measure = MEASURES[test.measure]
            numbers = [f"{value:{measure.form}}" for value in (test.first, test.second)]
            p = "" if math.isnan(test.p) else f"{test.p:.2g}"
            difference = f"{test.difference:+{measure.form}}"
            lines.append(_line([measure.words, str(test.n), *numbers, difference, p, test.says]))
        if chosen:
            parts += [f"## Over {over}", "\n".join(lines)]
    words = "Wilcoxon signed-rank tests, two-sided, of the first minus the second, after all."
    return "\n\n".join([*parts, f"{words} {CAUTION}"]) + "\n"


def summary_row(summary: Summary) -> dict[str, Any]:
    """For a table, with the words of its definition."""
    return asdict(summary) | {"definition": MEASURES[summary.measure].definition}


def _summary(stage: str, label: str, measure: str, values: np.ndarray) -> Summary:
    sd = float(values.std(ddof=1)) if values.size > 1 else math.nan
    ends = float(np.median(values)), float(values.min()), float(values.max())
    return Summary(stage, label, measure, int(values.size), float(values.mean()), sd, *ends)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|" + " --- |" * columns
