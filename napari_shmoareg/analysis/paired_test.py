"""Evaluations on the same pairs: the Wilcoxon signed-rank test, what it says, and draws of the subjects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from napari_shmoareg.analysis.evaluation import MEASURES

Row = Mapping[str, Any]
LEVEL = 0.05  # below which a difference is called one
FEWEST_DRAWN = 5  # subjects; with fewer the percentiles of a resampling mean little
DRAWS = 10_000
FEWEST = 6  # differences below which no outcome has a p under 0.05
PAIRS, SUBJECTS = "pairs", "fixed subjects"
CAUTION = (
    "Pairs that share a subject are not independent, so the p over pairs is smaller than it should be. The test over "
    "fixed subjects takes one number per fixed subject, the mean over its pairs; it still shares the moving ones. "
    "No correction for several measures is made."
)


@dataclass(frozen=True)
class PairedTest:
    """One measure of two evaluations, after all, over the pairs that both have.

    Attributes
    ----------
    measure : str
        A column of `MEASURES`.
    over : {"pairs", "fixed subjects"}
    n : int
        How many; of them `equal` are the same in both, which the test leaves out.
    equal : int
    first, second : float
        Medians.
    difference, mean_difference : float
        Median and mean of first minus second.
    p : float
        Two-sided; NaN where nothing could be tested.
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
    def says(self) -> str:
        """The outcome in one sentence."""
        measure = MEASURES[self.measure]
        unequal = self.n - self.equal
        if not unequal:
            return f"The same in all {self.n} {self.over}."
        size = f"median difference {self.difference:+{measure.form}} over {self.n} {self.over}, p = {self.p:.2g}"
        if unequal < FEWEST:
            return f"Too few to tell: with {unequal} that differ, no outcome has a p below {LEVEL} ({size})."
        if self.p >= LEVEL:
            return f"No difference shown ({size}); that is no proof that there is none."
        direction = self.difference or self.mean_difference
        way = "higher" if direction > 0 else "lower"
        worth = "" if not measure.better else ", better" if direction * measure.better > 0 else ", worse"
        return f"The first is {way}{worth} ({size})."

    def row(self) -> dict[str, Any]:
        """For a table."""
        return asdict(self) | {"says": self.says}


def signed_rank(differences: Iterable[float]) -> float:
    """The two-sided p of the Wilcoxon signed-rank test, by scipy; NaN if no difference is left.

    Differences of 0 are left out (Wilcoxon's way); below 1e-9 they are rounding.
    """
    values = np.round(np.asarray(list(differences), dtype=np.float64), 9)
    if not np.count_nonzero(values):
        return math.nan
    return float(stats.wilcoxon(values, zero_method="wilcox", alternative="two-sided", method="auto").pvalue)


def compare(first: Iterable[Row], second: Iterable[Row]) -> list[PairedTest]:
    """Test every measure that both evaluations have, over pairs and over fixed subjects.

    Parameters
    ----------
    first, second : iterable of mappings
        Rows as of `pair_rows`: those of the stage "after", without an error, are matched by "moving" and "fixed".
    """
    ours, theirs = _after(first), _after(second)
    both = [key for key in ours if key in theirs]
    found = []
    for measure in MEASURES:
        known = [
            (ours[key], a, b)
            for key in both
            if (a := _number(ours[key], measure)) is not None and (b := _number(theirs[key], measure)) is not None
        ]
        if not known:
            continue
        found.append(_test(measure, PAIRS, [(a, b) for _, a, b in known]))
        subjects: dict[str, list[tuple[float, float]]] = {}
        for row, a, b in known:
            subjects.setdefault(str(row["fixed_subject"]), []).append((a, b))
        means = [tuple(np.mean(values, axis=0).tolist()) for values in subjects.values()]
        found.append(_test(measure, SUBJECTS, means))
    return found


def subject_draws(pairs: Sequence[tuple[str, str]], *, draws: int = DRAWS, seed: int = 1) -> NDArray[np.float64] | None:
    """How much each pair counts in each draw of a bootstrap over subjects.

    Subjects are drawn with replacement, as many as there are, and a pair counts as often as its moving times as often
    as its fixed one was drawn (Owen 2007, "The pigeonhole bootstrap", of the two ways in which pairs are alike).
    Draws in which no pair is left are not counted.  Intervals of this are rather too wide than too narrow.  Where no
    subject is in two pairs, the pairs are what is independent, and they are drawn.

    Parameters
    ----------
    pairs : sequence of (moving, fixed)
        Whose image each is; an image of which nothing else is known is a subject.
    draws : int
    seed : int

    Returns
    -------
    (draws or fewer, P) array, or None
        None with fewer than 5 subjects (where no subject is in two pairs: than 5 pairs).
    """
    names = sorted({name for pair in pairs for name in pair})
    lot = np.random.default_rng(seed)
    if len(names) == 2 * len(pairs):
        if len(pairs) < FEWEST_DRAWN:
            return None
        return lot.multinomial(len(pairs), [1 / len(pairs)] * len(pairs), draws).astype(np.float64)
    if len(names) < FEWEST_DRAWN:
        return None
    times = lot.multinomial(len(names), [1 / len(names)] * len(names), draws).astype(np.float64)
    moving, fixed = ([names.index(pair[side]) for pair in pairs] for side in (0, 1))
    counted = times[:, moving] * times[:, fixed]
    return np.asarray(counted[counted.sum(axis=1) > 0])


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
    return {(row["moving"], row["fixed"]): row for row in rows if row["stage"] == "after" and not row["error"]}


def _number(row: Row, measure: str) -> float | None:
    value = row.get(measure)
    return None if value is None or math.isnan(float(value)) else float(value)
