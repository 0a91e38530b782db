"""The deformation of a conformed pair: contrast, the network's cascade, refinement on the pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.engine.cascade import Cascade, cascade, coarser, to_shape
from napari_shmoareg.engine.contrast import Relation, relate
from napari_shmoareg.engine.local_similarity import LocalCorrelation
from napari_shmoareg.engine.memory import too_large_for
from napari_shmoareg.engine.refinement import MEASURES, Refinement, refine
from napari_shmoareg.geometry import InputError, field
from napari_shmoareg.model import SHMoAReg

VISIBLE = 0.5  # share of the anatomy that the local correlation has to see, for "auto" to take it
SIMILARITIES = ("auto", *MEASURES)
Told = Callable[[float], None]


class Refined(NamedTuple):
    """A refined displacement (1, 3, D, H, W) in voxels, on the CPU, and what it started from."""

    displacement: Tensor
    reason: str


def check_refinement(steps: int, similarity: str) -> None:
    """Refuse settings that cannot be.

    Raises
    ------
    InputError
        If the number of steps is negative, the similarity is none of `SIMILARITIES`, or one is given for nothing.
    """
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
        raise InputError(f"The steps of the refinement are a whole number, 0 for none; got {steps!r}.")
    if steps == 0 and similarity in MEASURES:
        raise InputError(
            f"The similarity '{similarity}' is what a refinement compares by, and none was asked for: give --refine 60 "
            "(in Python: refine=60) too, or leave the similarity out."
        )
    if similarity not in SIMILARITIES:
        raise InputError(f"The similarity is one of {', '.join(SIMILARITIES)}; got {similarity!r}.")


def choose_similarity(asked: str, relation: Relation, visible: float) -> tuple[Literal["lncc", "mind"], str]:
    """What the refinement compares the images by, and why.

    Ours: "auto" takes the local correlation, the more exact of the two, unless no curve translates the one
    image's brightness into the other's, or most of the anatomy has so little contrast, as soft tissue between
    bone and air, that the local correlation takes it for flat.

    Parameters
    ----------
    asked : {"auto", "lncc", "mind"}
    relation : Relation
        Of the images as the network brought them together.
    visible : float
        Of `LocalCorrelation.visible`.
    """
    if asked != "auto":
        return ("lncc" if asked == "lncc" else "mind"), f"{asked}, as asked"
    share = f"brightness explains {100 * relation.explained:.0f} % of the variance"
    if relation.unrelated:
        return "mind", f"mind (self-similarity): little in common as the network left them ({share})"
    seen = f"{100 * visible:.0f} % of the anatomy has clear contrast"
    if visible < VISIBLE:
        return "mind", f"mind (self-similarity): only {seen}"
    return "lncc", f"lncc (local correlation): the contrasts are related ({share}), {seen}"


def similarity_for(
    asked: str, moving: Tensor, fixed: Tensor, displacement: Tensor, backgrounds: tuple[float, float]
) -> tuple[Literal["lncc", "mind"], str]:
    """`choose_similarity` of a pair, as the network's displacement brings it together."""
    warped = field.warp(moving, displacement.to(moving.device), padding="border")
    visible = LocalCorrelation(warped, fixed).visible()
    return choose_similarity(asked, relate(warped, fixed, backgrounds=backgrounds), visible)


def run_network(
    network: SHMoAReg, moving: Tensor, fixed: Tensor, *, diffeomorphic: bool, device: torch.device, told: Told
) -> Cascade:
    """All passes in evaluation mode; the network's mode is put back.

    Raises
    ------
    TooLargeError
        If the device's memory ran out.
    """
    training = network.training
    try:
        network.to(device).eval()
        with torch.inference_mode():
            return cascade(network, moving.to(device), fixed.to(device), diffeomorphic=diffeomorphic, progress=told)
    except RuntimeError as error:
        plain = too_large_for(device, fixed.shape[2:], error)
        if plain is None:
            raise
        raise plain from error
    finally:
        network.train(training)


def local_correlation(moving: Tensor, fixed: Tensor, displacement: Tensor | None) -> float:
    """Mean squared local correlation, in [0, 1], of fixed and warped; of the pair as it stands without displacement.

    All (1, C, D, H, W) on one grid, the displacement in voxels; compared on the finest grid of a refinement.
    """
    return 1 - _loss(moving, fixed, displacement, Refinement(similarity="lncc"))


def refine_on_pair(
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor,
    settings: Refinement,
    *,
    diffeomorphic: bool,
    device: torch.device,
    told: Told,
) -> Refined:
    """Refine the network's displacement, or none at all where that is the better start; never to something worse.

    Better is what makes the pair more alike by the refinement's own similarity, at its finest level.

    Raises
    ------
    TooLargeError
        If the device's memory ran out.
    """
    moving, fixed, start = (t.to(device).clone() for t in (moving, fixed, displacement))
    try:
        none, found = (_loss(moving, fixed, u, settings) for u in (None, start))
        begun = "the network's displacement"
        if found > none:
            start, begun = torch.zeros_like(start), "the alignment alone, as the network did harm"
        reached = start
        for step in refine(moving, fixed, start, settings, diffeomorphic=diffeomorphic):
            reached = step.displacement
            told(step.step / settings.steps)
        after = _loss(moving, fixed, reached, settings)
    except RuntimeError as error:
        plain = too_large_for(device, fixed.shape[2:], error)
        if plain is None:
            raise
        raise plain from error
    numbers = f"{settings.similarity} loss {none:.4f} aligned, {found:.4f} by the network, {after:.4f} refined"
    if after > min(none, found):
        return Refined(start.cpu(), f"{settings.steps} steps from {begun} were dropped: no gain ({numbers})")
    return Refined(reached.cpu(), f"{settings.steps} steps from {begun} ({numbers})")


@torch.no_grad()
def _loss(moving: Tensor, fixed: Tensor, displacement: Tensor | None, settings: Refinement) -> float:
    """The refinement's similarity, as a loss, on the grid of its finest level."""
    shape = coarser(fixed.shape[2:], min(1.0, settings.finest / max(fixed.shape[2:])))
    warped = moving if displacement is None else field.warp(moving, displacement, padding="border")
    measure = MEASURES[settings.similarity](to_shape(warped, shape), to_shape(fixed, shape))
    return float(measure(torch.zeros((1, 3, *shape), device=fixed.device)))
