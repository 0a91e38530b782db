"""Methods compared on the same pairs: one scorer, a summary, a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.analysis.metrics import SharedLabels, dice_in_both, folding, mean, sdlogj, surface
from napari_shmoareg.geometry import DisplacementField, VolumePair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

START = "start"
MEASURES = {  # column: what people read, how it is written
    "dice": ("Dice", ".3f"),
    "assd_mm": ("ASSD, mm", ".2f"),
    "hd95_mm": ("HD95, mm", ".2f"),
    "landmark_mm": ("landmarks, mm", ".2f"),
    "folding_percent": ("folding, %", ".3f"),
    "sdlogj": ("SDlogJ", ".3f"),
    "seconds": ("seconds", ".1f"),
    "memory_mib": ("memory, MiB", ".0f"),
}
CONTESTS = (
    ("shmoareg+refine", "affine+refine"),
    ("shmoareg+refine", "affine+refine@shmoareg+refine"),
    ("shmoareg", "affine+refine@shmoareg"),
)
COLOURS = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#c2255c", "#846100", "#495057")
MARKERS = ("o", "s", "^")  # the colours begin again with the next one


class Spread(NamedTuple):
    """A measure over pairs; SD with n - 1, NaN for one pair."""

    mean: float
    sd: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one number."""
        array = np.asarray(values, dtype=np.float64)
        sd = float(array.std(ddof=1)) if array.size > 1 else math.nan
        return cls(float(array.mean()), sd, float(array.min()), float(array.max()))

    def written(self, form: str) -> str:
        """ "mean ± SD (least to most)"; the mean alone for one pair."""
        if math.isnan(self.sd):
            return format(self.mean, form)
        return f"{self.mean:{form}} ± {self.sd:{form}} ({self.least:{form}} to {self.most:{form}})"


@dataclass(frozen=True)
class MethodSummary:
    """What a method reached over all pairs.

    Attributes
    ----------
    method : str
    pairs, failed : int
        Pairs that it registered, and on which it failed.
    measures : dict of column to Spread
        Only those that were measured.
    worse, judged : int
        Pairs that it left worse than their start, of so many: by Dice, or by the landmark error where a
        pair has no labels.
    """

    method: str
    pairs: int
    failed: int
    measures: dict[str, Spread]
    worse: int
    judged: int

    @property
    def counted(self) -> str:
        """ "5 (1 failed)"; the number alone where none failed."""
        return f"{self.pairs}" + (f" ({self.failed} failed)" if self.failed else "")


def score(
    displacement: DisplacementField,
    pair: VolumePair,
    landmarks: tuple[NDArray, NDArray] | None = None,
    *,
    distances: bool = False,
) -> dict[str, float]:
    """How good a displacement is, whatever made it.

    Parameters
    ----------
    displacement : DisplacementField
        The whole transform on the fixed grid, mm RAS.
    pair : VolumePair
        Its labels, if both images have some, are carried by nearest neighbour in one interpolation.
    landmarks : fixed (n, 3) and moving (n, 3) points, mm RAS, optional
    distances : bool
        ASSD and HD95 too, which take seconds.

    Returns
    -------
    dict of column to float
        ``dice``, ``assd_mm``, ``hd95_mm`` (means over the labels that both have), ``landmark_mm`` (mean distance) as
        far as there is ground for them; ``folding_percent`` and ``sdlogj`` of the whole map, the affine
        included.  Definitions: `napari_shmoareg.analysis.metrics`.
    """
    found: dict[str, float] = {}
    if pair.moving_labels is not None and pair.fixed_labels is not None:
        carried, truth = displacement.warp(pair.moving_labels).values, pair.fixed_labels.values
        shared = SharedLabels.of(pair.moving_labels.labels, pair.fixed_labels.labels)
        found["dice"] = mean(dice_in_both(carried, truth, shared))
        if distances:
            both = surface(carried, truth, pair.fixed.grid.spacing)
            found["assd_mm"] = mean({label: near for label, (near, _) in both.items()})
            found["hd95_mm"] = mean({label: far for label, (_, far) in both.items()})
    if landmarks is not None:
        fixed, moving = landmarks
        found["landmark_mm"] = float(np.linalg.norm(fixed + displacement.at(fixed) - moving, axis=1).mean())
    jacobian = displacement.jacobian()
    return found | {"folding_percent": folding(jacobian), "sdlogj": sdlogj(jacobian)}


def summarise(rows: Iterable[Row]) -> list[MethodSummary]:
    """One summary per method, in the order in which they occur.

    Parameters
    ----------
    rows : iterable of mappings
        With ``pair``, ``method``, ``error`` (empty if there was none) and the columns of `MEASURES`; None or
        empty text is not measured.  The rows of the method "start" tell how each pair began.
    """
    rows = list(rows)
    begun = {str(row["pair"]): row for row in rows if row["method"] == START}
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        done = [row for row in own if not row.get("error")]
        values = {key: [v for row in done if (v := _number(row, key)) is not None] for key in MEASURES}
        judged = [w for row in done if method != START and (w := _worse(row, begun.get(str(row["pair"])))) is not None]
        measures = {key: Spread.of(numbers) for key, numbers in values.items() if numbers}
        found.append(MethodSummary(method, len(done), len(own) - len(done), measures, sum(judged), len(judged)))
    return found


def finished_by_all(rows: Iterable[Row]) -> list[Row]:
    """The rows of the pairs that every method finished: means over these are over the same pairs."""
    rows = list(rows)
    methods = {row["method"] for row in rows}
    done: dict[str, set[str]] = {}
    for row in rows:
        if not row.get("error"):
            done.setdefault(str(row["pair"]), set()).add(row["method"])
    return [row for row in rows if done.get(str(row["pair"])) == methods]


def markdown_table(summaries: Sequence[MethodSummary]) -> str:
    """The summaries as a Markdown table: mean ± SD (least to most)."""
    columns = [key for key in MEASURES if any(key in s.measures for s in summaries)]
    lines = [
        "| method | pairs | " + " | ".join(MEASURES[key][0] for key in columns) + " | worse than the start |",
        "| --- | --- |" + " --- |" * (len(columns) + 1),
    ]
    for summary in summaries:
        cells = [summary.measures[key].written(MEASURES[key][1]) if key in summary.measures else "" for key in columns]
        worse = f"{summary.worse} of {summary.judged}" if summary.judged else ""
        lines.append("| " + " | ".join([summary.method, summary.counted, *cells, worse]) + " |")
    return "\n".join(lines)


def network_matters(rows: Iterable[Row]) -> str:
    """What a trained network adds to the refinement alone, as Markdown; empty where that was not run.

    Two comparisons over the pairs that both methods finished: network and refinement against refinement alone, each
    until its gain is spent or at equal seconds, and the network alone against the refinement ended after the
    network's seconds.  Mean differences with their 95 % bootstrap interval over pairs (pairs that share a subject
    are not independent).
    """
    rows = [row for row in rows if not row.get("error")]
    lines = [
        "| network | without it | measure | difference (95 %) | better in | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    begun = len(lines)
    for first, second in CONTESTS:
        for key, better in (("dice", 1), ("landmark_mm", -1)):
            one, other = ({str(r["pair"]): r for r in rows if r["method"] == name} for name in (first, second))
            both = [pair for pair in one if pair in other and _number(one[pair], key) is not None]
            if not both:
                continue
            changes = np.array([float(one[pair][key]) - float(other[pair][key]) for pair in both])
            low, high = _bootstrap(changes)
            form = MEASURES[key][1]
            times = " / ".join(format(np.mean([float(r[p]["seconds"]) for p in both]), ".1f") for r in (one, other))
            lines.append(
                f"| {first} | {second} | {MEASURES[key][0]} | {changes.mean():+{form}} ({low:+{form}} to "
                f"{high:+{form}}) | {int((better * changes > 0).sum())} of {len(both)} | {times} |"
            )
    return "\n".join(lines) if len(lines) > begun else ""


def _bootstrap(values: NDArray) -> tuple[float, float]:
    """The 95 % interval of the mean over resampled values; 10,000 times, with a fixed seed."""
    drawn = np.random.default_rng(1).integers(0, values.size, (10_000, values.size))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def comparison_figure(rows: Iterable[Row]) -> Figure:
    """Accuracy against seconds and against regularity: each pair a dot, each method its mean with SD.

    Accuracy is Dice, or the landmark error where there are no labels; regularity is SDlogJ, the SD of the logarithm
    of the Jacobian determinant.  The runs of one method at several `SMOOTHNESS` settings are joined by a line.  The
    dashed line is where the pairs start.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    rows = list(rows)
    key = next((k for k in ("dice", "landmark_mm") if any(_number(row, k) is not None for row in rows)), "dice")
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    timed, regular = figure.subplots(1, 2, sharey=True)
    summaries = {s.method: s for s in summarise(rows) if key in s.measures}
    methods = [m for m in summaries if m != START]
    for axes, across in ((timed, "seconds"), (regular, "sdlogj")):
        if START in summaries:
            level = summaries[START].measures[key].mean
            axes.axhline(level, color="0.5", linestyle="--", linewidth=1, label=f"start, {level:{MEASURES[key][1]}}")
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
    timed.set(xscale="log", xlabel="seconds per pair", ylabel=f"{MEASURES[key][0]}, mean ± SD")
    timed.margins(x=0.15)
    timed.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    timed.xaxis.set_minor_locator(NullLocator())
    timed.xaxis.set_major_formatter("{x:g}")
    regular.set(xlabel="SDlogJ (smoother to the left)")
    if summaries:
        regular.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _families(methods: Sequence[str]) -> list[list[str]]:
    """Methods that differ in their smoothness alone: "affine+refine", "affine+refine:smooth"."""
    named = {name: [m for m in methods if m.partition(":")[0] == name] for name in methods if ":" not in name}
    return [family for family in named.values() if len(family) > 1]


def _draw(
    axes: Axes, summary: MethodSummary, rows: Sequence[Row], keys: tuple[str, str], style: tuple[str, str]
) -> None:
    """One method: its pairs as dots, its mean with SD."""
    (across, key), (colour, marker) = keys, style
    dots = [(_number(row, across), _number(row, key)) for row in rows]
    seen = np.array([(x, y) for x, y in dots if x is not None and y is not None]).reshape(-1, 2)
    axes.scatter(seen[:, 0], seen[:, 1], s=10, color=colour, alpha=0.3, linewidths=0)
    x, y = summary.measures[across], summary.measures[key]
    axes.errorbar(
        x.mean,
        y.mean,
        xerr=None if math.isnan(x.sd) else [[min(x.sd, 0.9 * x.mean)], [x.sd]],  # no bar to 0 on a log scale
        yerr=None if math.isnan(y.sd) else y.sd,
        fmt=marker,
        color=colour,
        capsize=3,
        label=f"{summary.method}, {y.mean:{MEASURES[key][1]}}",
    )


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    number = float(value)
    return None if math.isnan(number) else number


def _worse(row: Row, start: Row | None) -> bool | None:
    """Whether a pair was left worse than its start; None where nothing can tell."""
    for key, sign in (("dice", 1), ("landmark_mm", -1)):
        after, before = _number(row, key), None if start is None else _number(start, key)
        if after is not None and before is not None:
            return sign * after < sign * before
    return None
