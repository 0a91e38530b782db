"""Which stage of a registration is kept, and what a person should know before trusting it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from napari_shmoareg.engine.similarity import Similarity
from napari_shmoareg.geometry import InputError

STAGES = ("before", "affine", "network", "refined")
MUCH_FOLDING = 1.0  # percent of voxels
MARGIN = 0.01  # of what the best stage leaves unexplained, by which a later stage has to be better
AGREED = 0.8  # score above which images agree but for noise and interpolation
TRUST = 0.1  # by which the network has to agree better than the refinement, to be kept before it
MOVED = 0.35  # of what is left unexplained, that moving such images has to explain
NOTABLE = 0.01  # change of a similarity that is news
LOST = 0.05  # coverage lost from before to after that is news
LITTLE = 0.15  # score below which images hardly agree at all


def choose_stage(similarity: Mapping[str, Similarity | None], keep: str = "best") -> tuple[str, str]:
    """The stage under which the images agree best, and why.

    Ours: the score of `Similarity` (mutual information, local correlation and coverage) decides; a
    later stage has to be better than an earlier one by more than 1 % of what is left to explain.
    Images that agree already by their headers, but for noise and interpolation (a score above 0.8),
    are left alone unless a third of that is explained: a deformation can always fit some noise.
    For the same reason the refinement, which is smoother, is kept before the network's rougher
    deformation unless it agrees less by 0.1: on brains and hippocampi it brought the higher Dice
    with the lower score.

    Parameters
    ----------
    similarity : mapping of str to Similarity or None
        Of some of `STAGES`; None where the images did not meet.
    keep : {"best", "last"}
        "last" takes the last stage whatever it did.
    """
    scores = {
        stage: 0.0 if (found := similarity[stage]) is None else found.score for stage in STAGES if stage in similarity
    }
    judged = dict(scores)
    if "network" in judged and judged["network"] < judged.get("refined", -1.0) + TRUST:
        del judged["network"]
    best = max(judged.values())
    kept = next(stage for stage, score in judged.items() if score >= best - MARGIN * (1 - best))
    first, score = next(iter(scores.items()))
    if score > AGREED and best - score < MOVED * (1 - score):
        kept = first
    numbers = ", ".join(f"{score:.3f} {stage}" for stage, score in scores.items())
    if keep == "last":
        last = list(scores)[-1]
        return last, f"{last}, as requested (agreement {numbers}; {kept} agrees best)"
    return kept, f"{kept}, by image agreement ({numbers})"


def check_keep(keep: str) -> None:
    """Refuse what cannot be kept.

    Raises
    ------
    InputError
        If `keep` is neither "best" nor "last".
    """
    if keep not in ("best", "last"):
        raise InputError(f"What to keep is 'best' or 'last'; got {keep!r}.")


def cautions(
    similarity: Mapping[str, Similarity | None],
    kept: str,
    folding_percent: float,
    settings: Mapping[str, Any],
) -> list[str]:
    """In whole sentences; empty where nothing was noticed.

    Parameters
    ----------
    similarity, kept, folding_percent, settings
        Of a `Registration`.
    """
    found = []
    if settings.get("untrained"):
        found.append("These weights are untrained: nothing is deformed, and what the experts chose means nothing.")
    last = next(stage for stage in reversed(STAGES) if stage in similarity)
    scores = {stage: s.score for stage in STAGES if (s := similarity.get(stage)) is not None}
    best = max(scores, key=lambda stage: scores[stage], default=last)
    allowed = TRUST if (best, last) == ("network", "refined") else NOTABLE
    if kept == last and scores.get(last, 0.0) < scores.get(best, 0.0) - allowed:
        found.append(
            f"The last stage made the images less alike: agreement {scores[best]:.3f} {best}, "
            f"{scores.get(last, 0.0):.3f} {last}. "
            + ("The weights may not fit such images: try" if "network" in similarity else "Try")
            + " another --size, other --weights or --keep best."
        )
    if kept != last and not settings.get("untrained") and scores.get(last, 0.0) != scores.get(kept):
        what = {
            "before": "The images were left as their headers have them",
            "affine": "Only the alignment was kept",
            "network": "The refinement was not kept",
        }[kept]
        why = "nothing had to be moved" if scores.get(kept, 0.0) > AGREED else "try another --size or other --weights"
        found.append(
            f"{what}: the images agree no better after the later stages (agreement {scores.get(kept, 0.0):.3f} {kept}, "
            f"{scores.get(last, 0.0):.3f} {last}); {why}."
        )
    before, after = similarity["before"], similarity["after"]
    if before is not None and after is not None and kept != "before":
        found += _against(before, after)
    if after is not None and after.score < LITTLE:
        found.append(
            f"The images hardly agree (mutual information {after.nmi:.3f}, local correlation {after.local:.3f}): "
            "whether the result is right cannot be told from them. Check it in a viewer, or with labels or landmarks."
        )
    if folding_percent > MUCH_FOLDING:
        found.append(
            f"The deformation folds in {folding_percent:.2f} % of the voxels (jacobian.nii.gz shows where)"
            + ("." if settings["diffeomorphic"] else "; with --diffeomorphic it folds less.")
        )
    return found


def _against(before: Similarity, after: Similarity) -> list[str]:
    """Where the result disagrees with the images as they came."""
    found = []
    if after.coverage < before.coverage - LOST:
        found.append(
            f"Less of the anatomy is compared than before ({100 * before.coverage:.0f} % to "
            f"{100 * after.coverage:.0f} % of it lies in both fields of view): the alignment may have shifted parts "
            "out of view. Compare the result with the images as they came."
        )
    shared, local = after.information - before.information, after.local - before.local
    if min(shared, local) < -NOTABLE and max(shared, local) > NOTABLE:
        found.append(
            "Whether the result is better than the images as they came cannot be told from them: mutual information "
            f"went from {before.information:.3f} to {after.information:.3f}, local correlation from "
            f"{before.local:.3f} to {after.local:.3f}. Look at both, or give labels or landmarks."
        )
    return found
