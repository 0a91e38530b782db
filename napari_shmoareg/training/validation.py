"""Validation: register held-out pairs and measure the result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.geometry import field as fields
from napari_shmoareg.io import write_image
from napari_shmoareg.io.files import atomic_write
from napari_shmoareg.metrics import SharedLabels, dice_in_both, mean
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.registration import losses
from napari_shmoareg.registration.cascade import cascade
from napari_shmoareg.registration.conform import Conformed


@dataclass(frozen=True)
class ValidatedPair:
    """Measures of one pair, on its network grid.

    Attributes
    ----------
    dice : float
        Mean over the labels that both images have, warped by nearest neighbour; of fractions of
        labels, as synthetic pairs have them, the soft Dice of all. NaN without labels.
    ncc : float
        Correlation of the warped and the fixed image over all voxels.
    folding_percent : float
        Percentage of voxels with a Jacobian determinant of 0 or less.
    before : float or None
        The soft Dice before registration, if labels are fractions.
    """

    dice: float
    ncc: float
    folding_percent: float
    before: float | None = None


@dataclass(frozen=True)
class ValidationResult:
    """Means over validation pairs.

    Attributes
    ----------
    dice : float
        NaN if no pair has labels.
    ncc, folding_percent, seconds : float
        Seconds are the total over all pairs.
    per_pair : tuple of ValidatedPair
    by_kind : dict of str to float
        Of synthetic pairs: the soft Dice before and after registration and the folding of each
        kind, such as "torso_before".
    """

    dice: float
    ncc: float
    folding_percent: float
    seconds: float
    per_pair: tuple[ValidatedPair, ...]
    by_kind: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Score for the selection of the best weights: Dice, or without labels the correlation."""
        return self.ncc if np.isnan(self.dice) else self.dice


def validate(
    network: SHMoAReg, pairs: Sequence[Conformed], *, between: Callable[[int], None] | None = None
) -> ValidationResult:
    """Register pairs as `register` does, in all passes, and measure on the network grid.

    Parameters
    ----------
    network : SHMoAReg
        Its mode is restored; the random state of training is not changed.
    pairs : sequence of Conformed
        At the size of the weights; labels, if any, are label maps or fractions.
    between : callable, optional
        Called after each pair with the number done; its exceptions propagate.

    Raises
    ------
    InputError
        If there is no pair.
    """
    if len(pairs) == 0:
        raise InputError("There is no validation pair; give at least one.")
    start_time, training, found = time.perf_counter(), network.training, []
    network.eval()
    try:
        for number in range(len(pairs)):
            found.append(validated(pairs[number], displace(network, pairs[number])))
            if between is not None:
                between(number + 1)
    finally:
        network.train(training)
    with_labels = [pair.dice for pair in found if not np.isnan(pair.dice)]
    return ValidationResult(
        dice=float(np.mean(with_labels)) if with_labels else float("nan"),
        ncc=float(np.mean([pair.ncc for pair in found])),
        folding_percent=float(np.mean([pair.folding_percent for pair in found])),
        seconds=time.perf_counter() - start_time,
        per_pair=tuple(found),
    )


@torch.no_grad()
def displace(network: SHMoAReg, pair: Conformed) -> Tensor:
    """Displacement (1, 3, D, H, W) of a pair, voxels of its grid, on the CPU; keeps the network's
    mode.
    """
    device = next(network.parameters()).device
    return cascade(network, pair.moving.to(device), pair.fixed.to(device)).displacement.cpu()


def validated(pair: Conformed, displacement: Tensor) -> ValidatedPair:
    """Measure a displacement (1, 3, D, H, W), voxels of the network grid."""
    warped, fixed = fields.warp(pair.moving, displacement).flatten(), pair.fixed.flatten()
    both = torch.stack([warped, fixed]).double()
    both = both - both.mean(1, keepdim=True)
    ncc = float((both[0] @ both[1]) / (both[0].norm() * both[1].norm()).clamp_min(1e-12))
    dice, before = float("nan"), None
    moving_labels, fixed_labels = pair.moving_labels, pair.fixed_labels
    if moving_labels is not None and fixed_labels is not None:
        if losses.are_fractions(moving_labels, fixed_labels):
            before = 1 - float(losses.overlap(moving_labels, fixed_labels))
            warped_labels = fields.warp(moving_labels, displacement)
            dice = 1 - float(losses.overlap(warped_labels, fixed_labels))
        else:
            warped_labels = fields.warp(moving_labels, displacement, mode="nearest")
            truth, labels = _label_map(fixed_labels), _label_map(moving_labels)
            shared = SharedLabels.of(*(np.unique(each).tolist() for each in (labels, truth)))
            dice = mean(dice_in_both(_label_map(warped_labels), truth, shared))
    folded = fields.jacobian_determinant(displacement) <= 0
    return ValidatedPair(dice, ncc, 100 * float(folded.float().mean()), before)


def _label_map(labels: Tensor) -> np.ndarray:
    """Integers (D, H, W) of labels; of fractions, the largest one's position from 1."""
    if losses.are_fractions(labels):
        labels = torch.cat([1 - labels.sum(1, keepdim=True), labels], 1).argmax(1, keepdim=True)
    return labels[0, 0].round().to(torch.int32).cpu().numpy()


PREVIEW_FILE = "preview.json"


def write_preview(
    folder: Path, network: SHMoAReg, pair: Conformed, names: tuple[str, str], step: int
) -> None:
    """Register a pair and write images in [0, 1], labels and, last, preview.json, on the network
    grid.

    Parameters
    ----------
    folder : Path
        Created if missing.
    network : SHMoAReg
        Its mode is restored.
    pair : Conformed
    names : (moving, fixed)
        Names of the scans.
    step : int
        Steps of training so far.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    training = network.training
    network.eval()
    try:
        displacement = displace(network, pair)
    finally:
        network.train(training)
    folder.mkdir(parents=True, exist_ok=True)
    images = {
        "moving": pair.moving,
        "fixed": pair.fixed,
        "warped": fields.warp(pair.moving, displacement),
    }
    labels = {}
    if pair.moving_labels is not None:
        fractions = losses.are_fractions(pair.moving_labels)
        labels["warped_labels"] = fields.warp(
            pair.moving_labels, displacement, mode="bilinear" if fractions else "nearest"
        )
    if pair.fixed_labels is not None:
        labels["fixed_labels"] = pair.fixed_labels
    for name, tensor in (images | labels).items():
        path = folder / f"{name}.nii.gz"
        if name.startswith("warped") or not path.is_file():  # the others do not change
            write_image(_volume(tensor, pair.grid, name, name in labels), path)
    preview = {
        "step": step,
        "pair": list(names),
        "dice": validated(pair, displacement).dice if len(labels) == 2 else None,
        "labels": sorted(labels),
    }
    with atomic_write(folder / PREVIEW_FILE) as temporary:
        temporary.write_text(json.dumps(preview, indent=2) + "\n", encoding="utf-8")


def _volume(tensor: Tensor, grid: Grid, name: str, is_labels: bool) -> Volume:
    values = _label_map(tensor.detach()) if is_labels else tensor[0, 0].detach().cpu().numpy()
    return Volume(values, grid, name, is_labels=is_labels)
