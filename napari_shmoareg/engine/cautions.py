"""What a person should know before trusting a registration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from napari_shmoareg.engine.similarity import Similarity

MUCH_FOLDING = 1.0  # percent of voxels
NOTABLE = 0.002  # a smaller loss of correlation is no news


def cautions(
    similarity: Mapping[str, Similarity | None],
    local_correlation: Mapping[str, float],
    folding_percent: float,
    settings: Mapping[str, Any],
) -> list[str]:
    """In whole sentences; empty where nothing was noticed.

    Parameters
    ----------
    similarity, local_correlation, folding_percent, settings
        Of a `Registration`.
    """
    found = []
    if settings.get("untrained"):
        found.append("These weights are untrained: nothing is deformed, and what the experts chose means nothing.")
    placed, warped, local = similarity["affine"], similarity["after"], local_correlation
    if placed and warped and warped.ncc < placed.ncc - NOTABLE and not warped.nmi > placed.nmi:
        found.append(
            f"The deformation made the images less alike than the alignment alone (correlation {placed.ncc:.3f} to "
            f"{warped.ncc:.3f}, mutual information {placed.nmi:.3f} to {warped.nmi:.3f}). The weights may not fit "
            "such images: try another --size or other --weights, or keep the affine of report.json alone."
        )
    elif local["after"] < local["affine"] - NOTABLE:
        found.append(
            "The deformation made neighbourhoods less alike than the alignment alone (squared local correlation "
            f"{local['affine']:.3f} to {local['after']:.3f}). Look at the warped image"
            + ("." if settings["refine"] else ", and try --refine 60.")
        )
    if folding_percent > MUCH_FOLDING:
        found.append(
            f"The deformation folds in {folding_percent:.2f} % of the voxels (jacobian.nii.gz shows where)"
            + ("." if settings["diffeomorphic"] else "; with --diffeomorphic it folds less.")
        )
    return found
