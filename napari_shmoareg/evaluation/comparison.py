"""Comparison of methods on the same pairs: summary, plot, Wilcoxon signed-rank test."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy import stats

from napari_shmoareg.evaluation.methods import METHODS
from napari_shmoareg.io.files import atomic_write, write_table
from napari_shmoareg.io.untrusted import printable
from napari_shmoareg.metrics.measure import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = Mapping[str, Any]
SIGNIFICANCE = 0.05  # significance level
MIN_DIFFERENCES = 6  # with fewer non-zero differences, p cannot be below 0.05
PAIRS, SUBJECTS = "pairs", "fixed subjects"
CAUTION = (
    "Pairs that share a subject are not independent, so the p over pairs is too small. The test"
    " over fixed subjects uses one number per fixed subject, the mean over its pairs; these still"
    " share moving subjects. There is no correction for multiple measures."
)


@dataclass(frozen=True)
class PairedTest:
    """Test of one measure of two evaluations, after registration, over their common pairs.

    Attributes
    ----------
    measure : str
        A column of `MEASURES`.
    over : {"pairs", "fixed subjects"}
    n : int
        Sample size, including `equal` samples without a difference, which the test leaves out.
    equal : int
    first, second : float
        Medians.
    difference, mean_difference : float
        Median and mean of first minus second.
    p : float
        Two-sided; NaN if nothing could be tested.
    """

    measure: str
    over: str
    n: int
    equal: int
    first: float
    second: float
    difference: float
    mean_difference: float
    p: float

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        measure = MEASURES[self.measure]
        unequal = self.n - self.equal
        if not unequal:
            return f"The same in all {self.n} {self.over}."
        size = (
            f"median difference {self.difference:+{measure.form}} over {self.n} {self.over}, p ="
            f" {self.p:.2g}"
        )
        if unequal < MIN_DIFFERENCES:
            return (
                f"Too few differences: with {unequal}, p cannot be below {SIGNIFICANCE} ({size})."
            )
        if self.p >= SIGNIFICANCE:
            return f"No significant difference ({size}). This does not prove that there is none."
        direction = self.difference or self.mean_difference
        higher_or_lower = "higher" if direction > 0 else "lower"
        verdict = (
            ""
            if not measure.better
            else ", better"
            if direction * measure.better > 0
            else ", worse"
        )
        return f"The first is {higher_or_lower}{verdict} ({size})."

    def row(self) -> dict[str, Any]:
        """Table row."""
        return asdict(self) | {"says": self.sentence}


def signed_rank(differences: Iterable[float]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test, by scipy; NaN without differences.

    Differences of 0 (below 1e-9, as rounding) are left out, as Wilcoxon does.
    """
    values = np.round(np.asarray(list(differences), dtype=np.float64), 9)
    if not np.count_nonzero(values):
        return math.nan
    return float(
        stats.wilcoxon(values, zero_method="wilcox", alternative="two-sided", method="auto").pvalue
    )


def compare(first: Iterable[Row], second: Iterable[Row]) -> list[PairedTest]:
    """Test every measure that both evaluations have, over pairs and over fixed subjects.

    Parameters
    ----------
    first, second : iterable of mappings
        Rows of `pair_rows`; those of the stage "after" without an error are matched by "moving" and
        "fixed".
    """
    ours, theirs = _after(first), _after(second)
    both = [key for key in ours if key in theirs]
    found = []
    for measure in MEASURES:
        complete = [
            (ours[key], a, b)
            for key in both
            if (a := number_in(ours[key], measure)) is not None
            and (b := number_in(theirs[key], measure)) is not None
        ]
        if not complete:
            continue
        found.append(_test(measure, PAIRS, [(a, b) for _, a, b in complete]))
        subjects: dict[str, list[tuple[float, float]]] = {}
        for row, a, b in complete:
            subjects.setdefault(str(row["fixed_subject"]), []).append((a, b))
        means = [tuple(np.mean(values, axis=0).tolist()) for values in subjects.values()]
        found.append(_test(measure, SUBJECTS, means))
    return found


def _test(measure: str, over: str, values: list[tuple[float, float]]) -> PairedTest:
    a, b = np.array(values, dtype=np.float64).T
    differences = np.round(a - b, 9)
    return PairedTest(
        measure=measure,
        over=over,
        n=len(values),
        equal=int(np.count_nonzero(differences == 0)),
        first=float(np.median(a)),
        second=float(np.median(b)),
        difference=float(np.median(differences)),
        mean_difference=float(differences.mean()),
        p=signed_rank(differences),
    )


def _after(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    return {
        (row["moving"], row["fixed"]): row
        for row in rows
        if row["stage"] == "after" and not row["error"]
    }


START = "start"
FORMS = {  # number formats in the tables of a benchmark, by column
    "dice": ".3f",
    "assd_mm": ".2f",
    "hd95_mm": ".2f",
    "landmark_mm": ".2f",
    "folding_percent": ".3f",
    "sdlogj": ".3f",
    "seconds": ".1f",
    "memory_mib": ".0f",
}
COMPARISONS = (
    ("shmoareg+refine", "affine+refine"),
    ("shmoareg+refine", "affine+refine@shmoareg+refine"),
    ("shmoareg", "affine+refine@shmoareg"),
)
COLOURS = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#c2255c", "#846100", "#495057")
MARKERS = ("o", "s", "^")  # each is used with all colours in turn


@dataclass(frozen=True)
class Spread:
    """Distribution of a measure over pairs; SD with n - 1, NaN for one pair."""

    n: int
    mean: float
    sd: float
    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float] | NDArray) -> Spread:
        """From at least one number."""
        array = np.asarray(values, dtype=np.float64)
        sd = float(array.std(ddof=1)) if array.size > 1 else math.nan
        ends = float(np.median(array)), float(array.min()), float(array.max())
        return cls(int(array.size), float(array.mean()), sd, *ends)

    def format_as(self, form: str, *, extremes: bool = True) -> str:
        """Format as "mean ± SD (minimum to maximum)"; the mean alone for one pair."""
        if math.isnan(self.sd):
            return format(self.mean, form)
        ends = f" ({self.least:{form}} to {self.most:{form}})" if extremes else ""
        return f"{self.mean:{form}} ± {self.sd:{form}}{ends}"


@dataclass(frozen=True)
class MethodSummary:
    """Summary of a method over all pairs.

    Attributes
    ----------
    method : str
    pairs, failed : int
        Number of registered and of failed pairs.
    measures : dict of column to Spread
        Only columns with values.
    worse, compared : int
        Number of pairs that ended worse than their start, and number of pairs compared: by Dice, or
        by the landmark error for pairs without labels.
    """

    method: str
    pairs: int
    failed: int
    measures: dict[str, Spread]
    worse: int
    compared: int

    @property
    def pair_count(self) -> str:
        """Number of pairs as text: "5 (1 failed)", or "5" if none failed."""
        return f"{self.pairs}" + (f" ({self.failed} failed)" if self.failed else "")


def table_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table_head(heads: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [table_line(heads), "|" + " --- |" * len(heads)]


def summarise(rows: Iterable[Row]) -> list[MethodSummary]:
    """Summarise each method, in order of first occurrence.

    Parameters
    ----------
    rows : iterable of mappings
        With ``pair``, ``method``, ``error`` (empty without an error) and the columns of `FORMS`;
        None or empty text is a missing value.  Rows of the method "start" give the initial state of
        each pair.
    """
    rows = list(rows)
    begun = {str(row["pair"]): row for row in rows if row["method"] == START}
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        done = [row for row in own if not row.get("error")]
        values = {
            key: [v for row in done if (v := number_in(row, key)) is not None] for key in FORMS
        }
        compared = [
            w
            for row in done
            if method != START and (w := is_worse(row, begun.get(str(row["pair"])))) is not None
        ]
        measures = {key: Spread.of(numbers) for key, numbers in values.items() if numbers}
        found.append(
            MethodSummary(
                method, len(done), len(own) - len(done), measures, sum(compared), len(compared)
            )
        )
    return found


def finished_by_all(rows: Iterable[Row]) -> list[Row]:
    """The rows of the pairs that every method finished."""
    rows = list(rows)
    methods = {row["method"] for row in rows}
    done: dict[str, set[str]] = {}
    for row in rows:
        if not row.get("error"):
            done.setdefault(str(row["pair"]), set()).add(row["method"])
    return [row for row in rows if done.get(str(row["pair"])) == methods]


def markdown_table(summaries: Sequence[MethodSummary]) -> str:
    """The summaries as a Markdown table: mean ± SD (minimum to maximum)."""
    columns = [key for key in FORMS if any(key in s.measures for s in summaries)]
    heads = ["method", "pairs", *(MEASURES[key].words for key in columns), "worse than the start"]
    lines = table_head(heads)
    for summary in summaries:
        cells = [
            summary.measures[key].format_as(FORMS[key]) if key in summary.measures else ""
            for key in columns
        ]
        worse = f"{summary.worse} of {summary.compared}" if summary.compared else ""
        lines.append(table_line([summary.method, summary.pair_count, *cells, worse]))
    return "\n".join(lines)


def network_matters(rows: Iterable[Row]) -> str:
    """Compare network and refinement alone, as a Markdown table; empty if these were not run.

    Over the pairs that both methods finished: network and refinement against refinement alone,
    each until convergence or at equal seconds; and the network alone against a refinement stopped
    after the network's seconds.  Mean differences with 95 % bootstrap intervals over pairs (pairs
    that share a subject are not independent)."""
    rows = [row for row in rows if not row.get("error")]
    heads = ["network", "without it", "measure", "difference (95 %)", "better in", "seconds"]
    lines = table_head(heads)
    begun = len(lines)
    for first, second in COMPARISONS:
        for key, better in (("dice", 1), ("landmark_mm", -1)):
            one, other = (
                {str(r["pair"]): r for r in rows if r["method"] == name} for name in (first, second)
            )
            both = [pair for pair in one if pair in other and number_in(one[pair], key) is not None]
            if not both:
                continue
            changes = np.array([float(one[pair][key]) - float(other[pair][key]) for pair in both])
            low, high = _bootstrap(changes)
            form = FORMS[key]
            times = " / ".join(
                format(np.mean([float(r[p]["seconds"]) for p in both]), ".1f") for r in (one, other)
            )
            lines.append(
                f"| {first} | {second} | {MEASURES[key].words} | {changes.mean():+{form}}"
                f" ({low:+{form}} to {high:+{form}}) | {int((better * changes > 0).sum())} of"
                f" {len(both)} | {times} |"
            )
    return "\n".join(lines) if len(lines) > begun else ""


def _bootstrap(values: NDArray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean; 10,000 draws with a fixed seed."""
    drawn = np.random.default_rng(1).integers(0, values.size, (10_000, values.size))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def comparison_figure(rows: Iterable[Row]) -> Figure:
    """Plot accuracy against seconds and against regularity: pairs as dots, methods as mean and SD.

    Accuracy is Dice, or the landmark error without labels; regularity is SDlogJ, the SD of the
    logarithm of the Jacobian determinant.  A line joins the runs of one method at several
    `SMOOTHNESS` settings.  The dashed line is the start of the pairs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    rows = list(rows)
    key = next(
        (k for k in ("dice", "landmark_mm") if any(number_in(row, k) is not None for row in rows)),
        "dice",
    )
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    timed, regular = figure.subplots(1, 2, sharey=True)
    summaries = {s.method: s for s in summarise(rows) if key in s.measures}
    methods = [m for m in summaries if m != START]
    for axes, across in ((timed, "seconds"), (regular, "sdlogj")):
        if START in summaries:
            level = summaries[START].measures[key].mean
            axes.axhline(
                level,
                color="0.5",
                linestyle="--",
                linewidth=1,
                label=f"start, {level:{FORMS[key]}}",
            )
        for number, method in enumerate(methods):
            if across not in summaries[method].measures:
                continue
            own = [row for row in rows if row["method"] == method and not row.get("error")]
            style = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
            _draw(axes, summaries[method], own, (across, key), style)
        for family in _families([m for m in methods if across in summaries[m].measures]):
            x, y = ([summaries[m].measures[k].mean for m in family] for k in (across, key))
            axes.plot(x, y, color="0.4", linewidth=1)
        axes.grid(True, color="0.9", linewidth=0.7)
        axes.set_axisbelow(True)
    timed.set(xscale="log", xlabel="seconds per pair", ylabel=f"{MEASURES[key].words}, mean ± SD")
    timed.margins(x=0.15)
    timed.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    timed.xaxis.set_minor_locator(NullLocator())
    timed.xaxis.set_major_formatter("{x:g}")
    regular.set(xlabel="SDlogJ (smoother to the left)")
    if summaries:
        regular.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _families(methods: Sequence[str]) -> list[list[str]]:
    """Groups of methods that differ only in smoothness: "affine+refine", "affine+refine:smooth"."""
    named = {
        name: [m for m in methods if m.partition(":")[0] == name]
        for name in methods
        if ":" not in name
    }
    return [family for family in named.values() if len(family) > 1]


def _draw(
    axes: Axes,
    summary: MethodSummary,
    rows: Sequence[Row],
    keys: tuple[str, str],
    style: tuple[str, str],
) -> None:
    """Draw one method: pairs as dots, mean with SD."""
    (across, key), (colour, marker) = keys, style
    dots = [(number_in(row, across), number_in(row, key)) for row in rows]
    points = np.array([(x, y) for x, y in dots if x is not None and y is not None]).reshape(-1, 2)
    axes.scatter(points[:, 0], points[:, 1], s=10, color=colour, alpha=0.3, linewidths=0)
    x, y = summary.measures[across], summary.measures[key]
    axes.errorbar(
        x.mean,
        y.mean,
        # no bar to 0 on a log scale
        xerr=None if math.isnan(x.sd) else [[min(x.sd, 0.9 * x.mean)], [x.sd]],
        yerr=None if math.isnan(y.sd) else y.sd,
        fmt=marker,
        color=colour,
        capsize=3,
        label=f"{summary.method}, {y.mean:{FORMS[key]}}",
    )


def number_in(row: Row, key: str) -> float | None:
    """A number of a row, also of a row read from a table; None if missing."""
    value = row.get(key)
    if value is None or value == "" or math.isnan(float(value)):
        return None
    return float(value)


def is_worse(row: Row, start: Row | None) -> bool | None:
    """Whether a pair ended worse than its start, by Dice, else landmarks, else correlation.

    None if nothing can be compared.
    """
    for key in ("dice", "landmark_mm", "ncc") if start else ():
        after, before = number_in(row, key), number_in(start or {}, key)
        if after is not None and before is not None:
            return (after - before) * MEASURES[key].better < 0
    return None


ROWS, SUMMARY, PLOT = "pairs.csv", "summary.md", "plot.png"
MEASURED = (*FORMS, "deforming_seconds", "labels", "error")
NOTES = """\
Mean ± SD over pairs (minimum to maximum). **Dice**, ASSD and HD95 are means over the labels that
both images have, warped by nearest neighbour in one interpolation, on the fixed grid.
**Landmarks** is the mean landmark distance per pair. **Folding** and SDlogJ are of the whole
transform, including the affine, on the fixed grid. **Seconds** are of the method alone: with the
alignment and the similarities that our own method reports, without reading, imports and scoring;
deforming_seconds in pairs.csv are of network and refinement alone. **Memory** is the peak of the
method's process, or of a program that it ran: interpreter, libraries and images included, GPU
memory not. A pair counts as worse than its start by Dice, or by the landmarks if it has no labels.
Each method ran in its own process, one after the other."""


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """Write pairs.csv."""
    if rows:
        cells = [{k: "" if v is None else v for k, v in row.items()} for row in rows]
        write_table(cells, out / ROWS)


def write_results(
    out: Path, rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]
) -> list[MethodSummary]:
    """Write the rows, summary.md and plot.png, and return the summaries."""
    write_rows(out, rows)
    summaries = summarise(rows)
    parts = ["# Methods on the same pairs", _progress(rows, plan), markdown_table(summaries)]
    if any(summary.failed for summary in summaries):
        parts += _common_pairs(summarise(finished_by_all(rows)))
    if adds := network_matters(rows):
        parts += ["## Does the network matter?", adds]
    parts += [NOTES]
    missing_labels = dict.fromkeys(
        f"- pair {r['pair']}: {r['labels']}" for r in rows if "only" in (r.get("labels") or "")
    )
    if missing_labels:
        parts += [
            "## Labels missing in one image of a pair (not in the means)",
            "\n".join(missing_labels),
        ]
    failures = [
        f"- pair {row['pair']}, {row['method']}: {row['error']}" for row in rows if row["error"]
    ]
    if failures:
        parts += [
            "## Failed",
            "\n".join(failures),
            "To repeat one, delete its file in rows and run the same command again.",
        ]
    parts += ["## Methods", _methods(plan), "## Settings", markdown_list(plan["settings"])]
    parts += [
        "## Machine and versions",
        markdown_list(_surroundings() | plan["machine"] | plan["versions"]),
    ]
    with atomic_write(out / SUMMARY) as temporary:
        temporary.write_text(printable("\n\n".join(parts)) + "\n", encoding="utf-8")
    with atomic_write(out / PLOT) as temporary:
        comparison_figure(rows).savefig(temporary, dpi=150)
    return summaries


def _progress(rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> str:
    total_runs = len(plan["pairs"]) * len(plan["methods"])
    state = (
        "" if len(rows) >= total_runs else f" **Not finished: {len(rows)} of {total_runs} runs.**"
    )
    count = len(plan["pairs"])
    return (
        f"{count} pair{'' if count == 1 else 's'}, listed in benchmark.json; every number is in"
        f" {ROWS}.{state}"
    )


def _common_pairs(summaries: Sequence[MethodSummary]) -> list[str]:
    """The table over the pairs that every method finished."""
    if not summaries:
        return ["No pair was finished by every method."]
    count = summaries[0].pairs
    return [
        f"Over the {f'{count} pairs' if count > 1 else 'one pair'} that every method finished:",
        markdown_table(summaries),
    ]


def _methods(plan: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {METHODS[name].description}" for name in plan["methods"])


def _surroundings() -> dict[str, str]:
    total = psutil.virtual_memory().total
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "memory": f"{total / 2**30:.1f} GiB",
    }


def markdown_list(values: Mapping[str, Any]) -> str:
    """Names and values as a Markdown list."""
    return "\n".join(
        f"- {key.replace('_', ' ')}: {'default' if value is None else value}"
        for key, value in values.items()
    )
