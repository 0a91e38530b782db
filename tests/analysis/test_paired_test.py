"""The Wilcoxon signed-rank test of two evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from napari_shmoareg.evaluation.comparison import PAIRS, SUBJECTS, compare, signed_rank
from napari_shmoareg.evaluation.tables import comparison_page


def rows(values: dict[tuple[str, str], float], measure: str = "dice", **more: object) -> list[dict]:
    about = {"stage": "after", "error": ""} | more
    return [
        about | {"moving": moving, "fixed": fixed, "fixed_subject": fixed[0], measure: value}
        for (moving, fixed), value in values.items()
    ]


def named(numbers) -> dict[tuple[str, str], float]:
    return {(f"m{n}", f"{chr(97 + n % 5)}{n}"): float(value) for n, value in enumerate(numbers)}


def ranked(differences: np.ndarray) -> float:
    """The statistic by hand, and its normal approximation with the correction for ties, no
    continuity.
    """
    d = differences[differences != 0]
    ranks = stats.rankdata(np.abs(d))
    plus, n = ranks[d > 0].sum(), len(d)
    _, counts = np.unique(np.abs(d), return_counts=True)
    variance = n * (n + 1) * (2 * n + 1) / 24 - (counts**3 - counts).sum() / 48
    return 2 * stats.norm.sf(abs(plus - n * (n + 1) / 4) / np.sqrt(variance))


@pytest.mark.parametrize("n", [6, 20, 90])
def test_without_ties_the_p_is_scipy_s(n):
    differences = np.random.default_rng(n).normal(0.2, 1, n).round(6)
    assert signed_rank(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_with_ties_and_zeros_the_p_is_that_of_the_corrected_ranks():
    differences = np.random.default_rng(4).integers(-3, 5, 80) / 10
    assert (differences == 0).sum() > 3
    assert signed_rank(differences) == pytest.approx(ranked(differences), rel=1e-6)
    assert signed_rank(differences) == pytest.approx(
        stats.wilcoxon(differences.round(9), zero_method="wilcox").pvalue
    )


def test_six_differences_of_one_sign_are_the_fewest_that_show_something():
    assert signed_rank(np.arange(1, 7) / 10) == pytest.approx(2 / 2**6)
    assert signed_rank(np.arange(1, 6) / 10) == pytest.approx(2 / 2**5)


def test_differences_of_rounding_are_none():
    assert math.isnan(signed_rank([0.1 + 0.2 - 0.3, 0.0])) and math.isnan(signed_rank([]))


def test_a_better_first_is_called_better_with_its_p():
    rng = np.random.default_rng(0)
    second = rng.uniform(0.5, 0.7, 20)
    gain = rng.uniform(0.01, 0.09, 20)
    pairs, subjects = compare(rows(named(second + gain)), rows(named(second)))
    assert (pairs.over, pairs.n, pairs.equal) == (PAIRS, 20, 0)
    assert pairs.difference == pytest.approx(np.median(gain)) and pairs.p == pytest.approx(
        2 / 2**20
    )
    assert pairs.sentence.startswith("The first is higher, better (median difference +0.")
    groups = [np.mean(gain[start::5]) for start in range(5)]
    assert (subjects.over, subjects.n) == (SUBJECTS, 5) and subjects.p == pytest.approx(2 / 2**5)
    assert subjects.difference == pytest.approx(np.median(groups))
    assert subjects.sentence.startswith("Too few differences: with 5")


def test_a_distance_that_is_higher_is_worse():
    second = named(np.linspace(1, 3, 12))
    first = {key: value + 0.5 + 0.01 * value for key, value in second.items()}
    found = compare(rows(first, "assd_mm"), rows(second, "assd_mm"))[0]
    assert found.sentence.startswith("The first is higher, worse") and found.measure == "assd_mm"


def test_no_difference_shown_is_not_called_equality():
    differences = np.array([0.1, -0.11, 0.12, -0.13, 0.14, -0.15, 0.16, -0.17])
    first, second = named(0.5 + differences), named(np.full(8, 0.5))
    found = compare(rows(first), rows(second))[0]
    assert (
        found.p > 0.05
        and "No significant difference" in found.sentence
        and "not prove" in found.sentence
    )


def test_the_same_evaluation_twice_differs_in_nothing():
    same = rows(named(np.linspace(0.4, 0.8, 9)))
    for found in compare(same, same):
        assert (
            math.isnan(found.p)
            and found.equal == found.n
            and found.sentence.startswith("The same in all")
        )


def test_only_finished_pairs_of_both_are_compared_after_all():
    first = rows(named(np.linspace(0.4, 0.8, 9)))
    first[0]["error"] = "it broke"
    first[1]["dice"] = None
    first[2]["dice"] = float("nan")
    first[3]["stage"] = "start"
    second = rows(named(np.linspace(0.3, 0.6, 8)))
    assert compare(first, second)[0].n == 4
    assert compare(first, rows({("x", "y"): 0.4})) == [] and compare([], []) == []


def test_the_page_says_that_pairs_are_not_independent():
    tests = compare(rows(named(np.linspace(0.4, 0.8, 9))), rows(named(np.linspace(0.3, 0.8, 9))))
    page = comparison_page(tests, "mine", "theirs", ["mine: 9 pairs."])
    assert page.startswith("# mine against theirs") and "not independent" in page
    assert "## Over pairs" in page and "## Over fixed subjects" in page
    assert f"| Dice | 9 | 0.6000 | 0.5500 | +0.0500 | {tests[0].p:.2g} |" in page
