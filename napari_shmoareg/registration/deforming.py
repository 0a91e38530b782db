"""The deformation of a conformed pair: contrast, the network's cascade, refinement on the pair."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.geometry import DisplacementField, Transform, Volume, VolumePair, field
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.registration.cascade import Cascade, cascade, coarser, to_shape
from napari_shmoareg.registration.conform import Conformed
from napari_shmoareg.registration.contrast import WORTH, Relation, relate
from napari_shmoareg.registration.refinement import (
    BRIGHTNESS,
    MEASURES,
    SMOOTHNESS,
    Refinement,
    refine,
)
from napari_shmoareg.registration.resources import too_large_for
from napari_shmoareg.registration.similarity import LocalCorrelation
from napari_shmoareg.settings import RegistrationSettings

VISIBLE = 0.5  # share of the anatomy that the local correlation has to see, for "auto" to take it
ALIKE = 0.5  # correlation of intensities above which their difference tells something
ProgressCallback = Callable[[float], None]


class Refined(NamedTuple):
    """A refined displacement (1, 3, D, H, W) in voxels, on the CPU, and what it started from."""

    displacement: Tensor
    reason: str


def choose_similarity(
    asked: str, relation: Relation, visible: float
) -> tuple[Literal["lncc", "mind"], str]:
    """What the refinement compares the images by, and why.

    Ours: "auto" takes the local correlation, the more exact of the two, unless no curve translates
    the one image's brightness into the other's, or most of the anatomy has so little contrast, as
    soft tissue between bone and air, that the local correlation takes it for flat.

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
        return "mind", f"mind (self-similarity): little in common after the alignment ({share})"
    seen = f"{100 * visible:.0f} % of the anatomy has clear contrast"
    if visible < VISIBLE:
        return "mind", f"mind (self-similarity): only {seen}"
    return "lncc", f"lncc (local correlation): the contrasts are related ({share}), {seen}"


def similarity_for(
    asked: str,
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor | None,
    backgrounds: tuple[float, float],
) -> tuple[Literal["lncc", "mind"], float, str]:
    """`choose_similarity` of a pair, as the network's displacement, or the alignment, brings it
    together.

    Between the similarity and the reason stands the weight of the difference of intensities (see
    `Refinement`)."""
    warped = moving
    if displacement is not None:
        warped = field.warp(moving, displacement.to(moving.device), padding="border")
    visible = LocalCorrelation(warped, fixed).visible()
    relation = relate(warped, fixed, backgrounds=backgrounds)
    measure, reason = choose_similarity(asked, relation, visible)
    if measure == "lncc" and relation.correlation > ALIKE and relation.bent < WORTH:
        return (
            measure,
            BRIGHTNESS,
            (
                f"{reason}; with the difference of intensities (correlation"
                f" {relation.correlation:.2f})"
            ),
        )
    return measure, 0.0, reason


def run_network(
    network: SHMoAReg,
    moving: Tensor,
    fixed: Tensor,
    *,
    diffeomorphic: bool,
    device: torch.device,
    told: ProgressCallback,
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
            return cascade(
                network,
                moving.to(device),
                fixed.to(device),
                diffeomorphic=diffeomorphic,
                progress=told,
            )
    except RuntimeError as error:
        plain = too_large_for(device, fixed.shape[2:], error)
        if plain is None:
            raise
        raise plain from error
    finally:
        network.train(training)


def refine_conformed(
    conformed: Conformed,
    images: tuple[Tensor, Tensor],
    backgrounds: tuple[float, float],
    displacement: Tensor | None,
    asked: RegistrationSettings,
    device: torch.device,
    told: ProgressCallback,
) -> tuple[Tensor, dict[str, str]]:
    """Choose by what a conformed pair is compared, and refine it.

    Parameters
    ----------
    conformed : Conformed
    images : Tensors (1, 1, D, H, W)
        Moving, in the contrast that was chosen for it, and fixed.
    backgrounds : two floats
        Brightness of the background of both.
    displacement : Tensor (1, 3, D, H, W), voxels, or None
        What the network found.
    asked : RegistrationSettings
        Whose `diffeomorphic` is decided.
    device, told
        As of `refine_on_pair`.

    Returns
    -------
    displacement : Tensor (1, 3, D, H, W), voxels, on the CPU
    choices : dict of str
        "similarity" and "refinement": what was chosen, and why.
    """
    measure, brightness, why = similarity_for(asked.similarity, *images, displacement, backgrounds)
    # mind needs no like contrast
    shown = images if measure == "lncc" else (conformed.moving, conformed.fixed)
    settings = Refinement(
        asked.refine, measure, elastic=SMOOTHNESS[asked.smoothness], brightness=brightness
    )
    found = refine_on_pair(
        *shown,
        displacement,
        settings,
        diffeomorphic=bool(asked.diffeomorphic),
        device=device,
        told=told,
        seconds=asked.refine_seconds,
    )
    return found.displacement, {"similarity": why, "refinement": found.reason}


def refine_on_pair(
    moving: Tensor,
    fixed: Tensor,
    displacement: Tensor | None,
    settings: Refinement,
    *,
    diffeomorphic: bool,
    device: torch.device,
    told: ProgressCallback,
    seconds: float | None = None,
) -> Refined:
    """Refine the network's displacement, or none at all where that is the better start.

    Both are descended on the coarsest level first; better is what is more alike there, by the
    refinement's own similarity at half its finest resolution.

    Parameters
    ----------
    moving, fixed : Tensor (1, 1, D, H, W), in [0, 1]
    displacement : Tensor (1, 3, D, H, W), voxels, or None
        What the network found; None without a network.
    seconds : float or None
        After which it ends.

    Raises
    ------
    TooLargeError
        If the device's memory ran out.
    """
    until = math.inf if seconds is None else time.perf_counter() + seconds
    moving, fixed = moving.to(device), fixed.to(device)
    begun, start, first = "the alignment", None, 0
    try:
        if displacement is not None and len(settings.levels) > 1:
            coarse = replace(settings, levels=settings.levels[:1])
            begun, start, first = _better_start(
                moving, fixed, displacement.to(device), coarse, diffeomorphic
            )
            settings = replace(settings, levels=settings.levels[1:])
        elif displacement is not None:
            begun, start = "the network's displacement", displacement.to(device)
        reached, count = None, first
        for step in refine(moving, fixed, start, settings, diffeomorphic=diffeomorphic):
            reached, count = step, first + step.step
            told(step.done)
            if time.perf_counter() > until:
                break
        if reached is not None:
            start = reached.displacement(fixed.shape[2:])
        result = torch.zeros((1, 3, *fixed.shape[2:])) if start is None else start.cpu().clone()
    except RuntimeError as error:
        plain = too_large_for(device, fixed.shape[2:], error)
        if plain is None:
            raise
        raise plain from error
    return Refined(result, f"{count} steps, coarse to fine, from {begun}")


def _better_start(
    moving: Tensor, fixed: Tensor, network: Tensor, coarse: Refinement, diffeomorphic: bool
) -> tuple[str, Tensor, int]:
    """The first level descended from the network's displacement and from none: which became more
    alike, and steps.
    """
    found: list[tuple[float, str, Tensor, int]] = []
    for name, start in (("the network's displacement", network), ("the alignment alone", None)):
        steps = list(refine(moving, fixed, start, coarse, diffeomorphic=diffeomorphic))
        reached = torch.zeros_like(network) if start is None else start
        if steps:
            reached = steps[-1].displacement(fixed.shape[2:])
        found.append((_loss(moving, fixed, reached, coarse), name, reached, len(steps)))
    (loss, name, reached, count), (other, _, _, _) = sorted(found, key=lambda entry: entry[0])
    return (
        f"{name} ({coarse.similarity} loss {loss:.4f} against {other:.4f} after the first level)",
        reached,
        count,
    )


@torch.no_grad()
def _loss(
    moving: Tensor, fixed: Tensor, displacement: Tensor | None, settings: Refinement
) -> float:
    """The refinement's similarity, as a loss, at half the resolution of its finest level."""
    shape = coarser(fixed.shape[2:], min(1.0, settings.finest / max(fixed.shape[2:])) / 2)
    warped = moving if displacement is None else field.warp(moving, displacement, padding="border")
    measure = MEASURES[settings.similarity](to_shape(warped, shape), to_shape(fixed, shape))
    return float(measure(torch.zeros((1, 3, *shape), device=fixed.device)))


@dataclass(frozen=True, eq=False)
class WarpedPair:
    """The moving image and its labels where a transform puts them.

    Attributes
    ----------
    warped : Volume
        On the fixed grid, by one interpolation of the original; float32.
    warped_labels : Volume or None
        Likewise, nearest neighbour.
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    deformation : DisplacementField
        The same without the affine: d(x).
    """

    warped: Volume
    warped_labels: Volume | None
    displacement: DisplacementField
    deformation: DisplacementField

    def jacobian(self) -> Volume:
        """det(I + dd/dx) of the deformation, on the fixed grid; 0 or less is folding."""
        return Volume(self.deformation.jacobian(), self.deformation.grid, "jacobian")


def carry(pair: VolumePair, transform: Transform) -> WarpedPair:
    """Carry the moving image of a pair, and its labels if it has them, onto the fixed image's
    grid.
    """
    grid = pair.fixed.grid
    deformation = Transform(np.eye(4), transform.field).total(grid)
    total = deformation.after(transform.affine)
    labels = None if pair.moving_labels is None else total.warp(pair.moving_labels)
    return WarpedPair(total.warp(pair.moving), labels, total, deformation)
