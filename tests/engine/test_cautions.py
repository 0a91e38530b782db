"""Which stage is kept, by scores alone, and what is said of it."""

import pytest

from napari_shmoareg.registration.register import choose_stage, find_warnings
from napari_shmoareg.registration.similarity import Similarity

SETTINGS = {"untrained": False, "diffeomorphic": True, "refine": 0}


def of(score, *, information=None, coverage=1.0):
    """A similarity of a given score."""
    information = score if information is None else information
    local = 2 * score / coverage**0.5 - information
    return Similarity(
        0.5, 0.1, information, 1.0, information=information, local=local, coverage=coverage
    )


def stages(before, affine, network, refined=None):
    found = {"before": before, "affine": affine, "network": network}
    if refined is not None:
        found["refined"] = refined
    return {name: score if score is None else of(score) for name, score in found.items()}


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.3, 0.5, 0.6), "network"),
        ((0.3, 0.5, 0.4), "affine"),
        ((0.3, 0.2, 0.1), "before"),
        ((None, 0.5, 0.6), "network"),
        # smoother: kept before the network's rougher deformation
        ((0.3, 0.5, 0.6, 0.58), "refined"),
        ((0.3, 0.5, 0.6, 0.45), "network"),
        ((0.3, 0.5, 0.3, 0.45), "affine"),
        ((0.5, 0.5, 0.5), "before"),
        ((0.9, 0.9, 0.92, 0.93), "before"),  # alike already, but for noise
        ((0.82, 0.82, 0.9, 0.95), "refined"),
    ],
)
def test_the_stage_under_which_the_images_agree_best_is_kept(scores, kept):
    chosen, why = choose_stage(stages(*scores))
    assert chosen == kept and all(f"{score:.3f}" in why for score in scores if score is not None)
    last = "refined" if len(scores) == 4 else "network"
    assert choose_stage(stages(*scores), "last")[0] == last


def test_a_kept_refinement_is_no_reason_for_a_caution():
    similarity = stages(0.3, 0.5, 0.6, 0.58)
    assert (
        find_warnings(similarity | {"after": similarity["refined"]}, "refined", 0.0, SETTINGS) == []
    )
    harmed = stages(0.5, 0.5, 0.3)
    (said,) = find_warnings(harmed | {"after": harmed["network"]}, "network", 0.0, SETTINGS)
    assert "less similar" in said and "keep the best stage" in said


def test_lost_coverage_and_contradicting_measures_are_told():
    before, after = of(0.4, coverage=1.0), of(0.5, coverage=0.8)
    said = find_warnings(
        {"before": before, "affine": after, "network": after, "after": after},
        "network",
        0.0,
        SETTINGS,
    )
    assert any("100 % to 80 %" in caution for caution in said)
    before, after = of(0.4, information=0.2), of(0.45, information=0.6)
    said = find_warnings(
        {"before": before, "affine": after, "network": after, "after": after},
        "network",
        0.0,
        SETTINGS,
    )
    assert any("metrics disagree" in caution for caution in said)
    little = of(0.05)
    said = find_warnings(
        {"before": None, "affine": little, "network": little, "after": little},
        "network",
        2.0,
        SETTINGS,
    )
    assert any("hardly agree" in caution for caution in said) and any(
        "folds in 2.00 %" in caution for caution in said
    )
