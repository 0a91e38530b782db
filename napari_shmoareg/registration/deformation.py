"""Deformation of a conformed pair: network cascade, and refinement on the pair."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import (
    DisplacementField,
    Transform,
    Volume,
    VolumePair,
    field,
    fill_value,
)
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.registration.cascade import Cascade, cascade, coarser, to_shape
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.registration.contrast import MATCH_GAIN, Relation, relate
from napari_shmoareg.registration.refinement import (
    BRIGHTNESS,
    MEASURES,
    SMOOTHNESS,
    Refinement,
    refine,
    weight_on,
)
from napari_shmoareg.registration.resources import too_large_for
from napari_shmoareg.registration.similarity import LocalCorrelation
from napari_shmoareg.settings import RegistrationSettings

VISIBLE = 0.5  # fraction of the anatomy with contrast that "auto" needs to choose lncc
RELATED = 0.5  # correlation of intensities above which their difference is informative
ProgressCallback = Callable[[float], None]


class Refined(NamedTuple):
    """A refined displacement (1, 3, D, H, W) in voxels, on the CPU, and a description."""

    displacement: Tensor
    reason: str


def choose_similarity(
    requested: Literal["auto", "lncc", "mind"], relation: Relation, visible: float
) -> tuple[Literal["lncc", "mind"], str]:
    """Choose the similarity metric of the refinement; returns it and the reason.

    Ours: "auto" chooses local correlation, the more exact of the two, unless no curve maps the
    brightness of one image to that of the other, or most of the anatomy has so little contrast
    (soft tissue between bone and air) that it counts as flat for the local correlation.

    Parameters
    ----------
    requested : {"auto", "lncc", "mind"}
    relation : Relation
        Of the images after the network.
    visible : float
        From `LocalCorrelation.visible`.
    """
    if requested != "auto":
        return requested, f"{requested}, as requested"
    explained = f"brightness explains {100 * relation.explained:.0f} % of the variance"
    if relation.unrelated:
        return "mind", f"mind (self-similarity): little in common after the alignment ({explained})"
    contrast = f"{100 * visible:.0f} % of the anatomy has clear contrast"
    if visible < VISIBLE:
        return "mind", f"mind (self-similarity): only {contrast}"
    return "lncc", f"lncc (local correlation): the contrasts are related ({explained}), {contrast}"


def choose_for_pair(
    requested: Literal["auto", "lncc", "mind"],
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor | None,
    backgrounds: tuple[float, float],
) -> tuple[Literal["lncc", "mind"], float, str]:
    """Call `choose_similarity` for a pair after the network, or after the alignment.

    Returns the metric, the weight of the intensity difference (see `Refinement`), and the reason.
    """
    warped = moving
    if displacement is not None:
        warped = field.warp(moving, displacement.to(moving.device), padding="border")
    visible = LocalCorrelation(warped, fixed).visible()
    relation = relate(warped, fixed, backgrounds=backgrounds)
    metric, reason = choose_similarity(requested, relation, visible)
    if metric == "lncc" and relation.correlation > RELATED and relation.nonlinearity < MATCH_GAIN:
        return (
            metric,
            BRIGHTNESS,
            (
                f"{reason}; with the difference of intensities (correlation"
                f" {relation.correlation:.2f})"
            ),
        )
    return metric, 0.0, reason


def run_network(
    network: SHMoAReg,
    moving: Tensor,
    fixed: Tensor,
    *,
    diffeomorphic: bool,
    device: torch.device,
    progress: ProgressCallback,
) -> Cascade:
    """Run all passes in evaluation mode, then restore the mode of the network.

    Raises
    ------
    TooLargeError
        If the device's memory ran out.
    """
    training = network.training
    try:
        network.to(device).eval()
        with torch.inference_mode():
            return cascade(
                network,
                moving.to(device),
                fixed.to(device),
                diffeomorphic=diffeomorphic,
                progress=progress,
            )
    except RuntimeError as error:
        too_large = too_large_for(device, fixed.shape[2:], error)
        if too_large is None:
            raise
        raise too_large from error
    finally:
        network.train(training)


def refine_conformed(
    conformed: Conformed,
    images: tuple[Tensor, Tensor],
    backgrounds: tuple[float, float],
    displacement: Tensor | None,
    settings: RegistrationSettings,
    device: torch.device,
    progress: ProgressCallback,
) -> tuple[Tensor, dict[str, str]]:
    """Choose the similarity metric for a conformed pair, and refine its displacement.

    Parameters
    ----------
    conformed : Conformed
    images : Tensors (1, 1, D, H, W)
        Moving, with matched contrast if so decided, and fixed; compared within the mask of
        `conformed`.
    backgrounds : two floats
        Background brightness of both.
    displacement : Tensor (1, 3, D, H, W), voxels, or None
        Result of the network.
    settings : RegistrationSettings
        `diffeomorphic` must not be None.
    device, progress
        As in `refine_on_pair`.

    Returns
    -------
    displacement : Tensor (1, 3, D, H, W), voxels, on the CPU
    choices : dict of str
        "similarity" and "refinement": the decision and its reason.
    """
    weight = conformed.mask
    if weight is not None and not bool(weight.any()):
        raise InputError(
            "The mask covers no voxel of the grid on which the images are refined.",
            remedy="Enlarge the mask or {size:native}, or register without refinement, {refine:0}.",
        )
    metric, brightness, why = choose_for_pair(
        settings.similarity, *images, displacement, backgrounds
    )
    # mind needs no matched contrast
    compared = images if metric == "lncc" else (conformed.moving, conformed.fixed)
    refinement = Refinement(
        settings.refine, metric, elastic=SMOOTHNESS[settings.smoothness], brightness=brightness
    )
    found = refine_on_pair(
        *compared,
        displacement,
        refinement,
        diffeomorphic=bool(settings.diffeomorphic),
        device=device,
        progress=progress,
        seconds=settings.refine_seconds,
        weight=weight,
    )
    reason = found.reason
    if conformed.start is not None:
        reason = reason.replace("the alignment", "the initial deformation")
    return found.displacement, {"similarity": why, "refinement": reason}


def refine_on_pair(
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor | None,
    settings: Refinement,
    *,
    diffeomorphic: bool,
    device: torch.device,
    progress: ProgressCallback,
    seconds: float | None = None,
    weight: Tensor | None = None,
) -> Refined:
    """Refine the displacement of the network, or start from the alignment if that is better.

    Both starts are optimised on the coarsest level first; the better one has the smaller loss of
    the refinement at half its finest resolution.

    Parameters
    ----------
    moving, fixed : Tensor (1, 1, D, H, W), in [0, 1]
    displacement : Tensor (1, 3, D, H, W), voxels, or None
        Result of the network; None without a network.
    seconds : float or None
        Time limit.
    weight : Tensor (1, 1, D, H, W), 0 or 1, or None
        Voxels whose similarity counts; None for all.

    Raises
    ------
    TooLargeError
        If the device's memory ran out.
    """
    until = math.inf if seconds is None else time.perf_counter() + seconds
    moving, fixed = moving.to(device), fixed.to(device)
    weight = None if weight is None else weight.to(device)
    start_name, start, first = "the alignment", None, 0
    try:
        if displacement is not None and len(settings.levels) > 1:
            coarse = replace(settings, levels=settings.levels[:1])
            start_name, start, first = _better_start(
                moving, fixed, displacement.to(device), coarse, diffeomorphic, weight
            )
            settings = replace(settings, levels=settings.levels[1:])
        elif displacement is not None:
            start_name, start = "the network's displacement", displacement.to(device)
        reached, count = None, first
        for step in refine(
            moving, fixed, start, settings, diffeomorphic=diffeomorphic, weight=weight
        ):
            reached, count = step, first + step.step
            progress(step.done)
            if time.perf_counter() > until:
                break
        if reached is not None:
            start = reached.displacement(fixed.shape[2:])
        result = torch.zeros((1, 3, *fixed.shape[2:])) if start is None else start.cpu().clone()
    except RuntimeError as error:
        too_large = too_large_for(device, fixed.shape[2:], error)
        if too_large is None:
            raise
        raise too_large from error
    return Refined(result, f"{count} steps, coarse to fine, from {start_name}")


def _better_start(
    moving: Tensor,
    fixed: Tensor,
    network: Tensor,
    coarse: Refinement,
    diffeomorphic: bool,
    weight: Tensor | None,
) -> tuple[str, Tensor, int]:
    """Optimise the first level from both starts; returns the better one with its step count."""
    found: list[tuple[float, str, Tensor, int]] = []
    for name, start in (("the network's displacement", network), ("the alignment alone", None)):
        steps = list(
            refine(moving, fixed, start, coarse, diffeomorphic=diffeomorphic, weight=weight)
        )
        reached = torch.zeros_like(network) if start is None else start
        if steps:
            reached = steps[-1].displacement(fixed.shape[2:])
        found.append((_loss(moving, fixed, reached, coarse, weight), name, reached, len(steps)))
    (loss, name, reached, count), (other, _, _, _) = sorted(found, key=lambda entry: entry[0])
    return (
        f"{name} ({coarse.similarity} loss {loss:.4f} against {other:.4f} of the other start, after"
        " the first level)",
        reached,
        count,
    )


@torch.no_grad()
def _loss(
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor | None,
    settings: Refinement,
    weight: Tensor | None,
) -> float:
    """Compute the loss of the refinement at half the resolution of its finest level."""
    shape = coarser(fixed.shape[2:], min(1.0, settings.finest / max(fixed.shape[2:])) / 2)
    warped = moving if displacement is None else field.warp(moving, displacement, padding="border")
    counted = None if weight is None else weight_on(weight[0, 0], shape)[None, None]
    metric = MEASURES[settings.similarity](
        to_shape(warped, shape), to_shape(fixed, shape), weight=counted
    )
    return float(metric(torch.zeros((1, 3, *shape), device=fixed.device)))


@dataclass(frozen=True, eq=False)
class WarpedPair:
    """The moving image and its labels, warped by a transform.

    Attributes
    ----------
    warped : Volume
        On the fixed grid, by one interpolation of the original; float32.
    warped_labels : Volume or None
        Likewise, nearest neighbour.
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    deformation : DisplacementField
        d(x) alone, without the affine.
    """

    warped: Volume
    warped_labels: Volume | None
    displacement: DisplacementField
    deformation: DisplacementField

    def jacobian(self) -> Volume:
        """det(I + dd/dx) of the deformation, on the fixed grid; 0 or less is folding."""
        return Volume(self.deformation.jacobian(), self.deformation.grid, "jacobian")


def warp_pair(pair: VolumePair, transform: Transform, fill: float | str = "auto") -> WarpedPair:
    """Warp the moving image of a pair, and its labels if any, to the grid of the fixed image.

    `fill` is the value where the moving image has no voxels, see `fill_value`.
    """
    grid = pair.fixed.grid
    deformation = Transform(np.eye(4), transform.field).total(grid)
    total = deformation.after(transform.affine)
    labels = None if pair.moving_labels is None else total.warp(pair.moving_labels)
    return WarpedPair(
        total.warp(pair.moving, fill_value(pair.moving, fill)), labels, total, deformation
    )
