"""Displacements that a network learns from directly: the true motion, or what a refinement without a network finds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from napari_shmoareg.engine.conform import Conformed
from napari_shmoareg.engine.deforming import refine_conformed
from napari_shmoareg.engine.intensity import background_of
from napari_shmoareg.engine.known_motion import KnownMotion
from napari_shmoareg.engine.refinement import DEFAULT_STEPS

# Ours: smoother than a registration's default, as a network should not learn the roughness of a descent.
DESCENT = {"refine": DEFAULT_STEPS, "similarity": "auto", "smoothness": "balanced", "diffeomorphic": False}


def descent_motion(pair: Conformed) -> KnownMotion:
    """What a refinement without a network finds for a pair, each image as moving once; known everywhere.

    Nothing is drawn at random: the same pair has the same answer.
    """
    swapped = replace(pair, moving=pair.fixed, fixed=pair.moving)
    scans = pair.pair
    empty = (0.0, 0.0) if scans is None else (background_of(scans.moving), background_of(scans.fixed))
    found = [
        refine_conformed(one, (one.moving, one.fixed), backgrounds, None, DESCENT, pair.fixed.device, _silent)[0]
        for one, backgrounds in ((pair, empty), (swapped, empty[::-1]))
    ]
    displacement = torch.cat(found).to(pair.fixed.device)
    return KnownMotion(displacement, torch.ones_like(displacement[:, :1]))


def end_point_error(displacement: Tensor, motion: KnownMotion) -> Tensor:
    """Mean length of the difference from a known motion where it is known, in voxels; 0 where nothing is.  A scalar.

    Parameters
    ----------
    displacement : Tensor (2, 3, D, H, W), voxels
        Of both orders.
    motion : KnownMotion
    """
    square = (displacement - motion.displacement).square().sum(1, keepdim=True)
    length = (square + 1e-12).sqrt()  # whose gradient is finite at 0
    return (length * motion.known).sum() / motion.known.sum().clamp_min(1)


def _silent(_done: float) -> None:
    """A step has a progress of its own."""
