"""A validation pair as the network registers it now, as images."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from napari_shmoareg.analysis.validation import displace, validated
from napari_shmoareg.engine.conform import Conformed
from napari_shmoareg.geometry import Grid, Volume, field
from napari_shmoareg.io.atomic import writing
from napari_shmoareg.io.images import write_image
from napari_shmoareg.model import SHMoAReg

TOLD = "preview.json"


def write_preview(folder: Path, network: SHMoAReg, pair: Conformed, names: tuple[str, str], step: int) -> None:
    """Register a pair and write what came out, on its network grid: images in [0, 1], labels, and preview.json last.

    Parameters
    ----------
    folder : Path
        Made if missing.
    network : SHMoAReg
        Left in the mode it came in.
    pair : Conformed
    names : (moving, fixed)
        Of its scans.
    step : int
        Steps that the network has learned.

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
    images = {"moving": pair.moving, "fixed": pair.fixed, "warped": field.warp(pair.moving, displacement)}
    labels = {}
    if pair.moving_labels is not None:
        labels["warped_labels"] = field.warp(pair.moving_labels, displacement, mode="nearest")
    if pair.fixed_labels is not None:
        labels["fixed_labels"] = pair.fixed_labels
    for name, tensor in (images | labels).items():
        place = folder / f"{name}.nii.gz"
        if name.startswith("warped") or not place.is_file():  # the others stay the same
            write_image(_volume(tensor, pair.grid, name, name in labels), place)
    told = {
        "step": step,
        "pair": list(names),
        "dice": validated(pair, displacement).dice if len(labels) == 2 else None,
        "labels": sorted(labels),
    }
    with writing(folder / TOLD) as temporary:
        temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _volume(tensor: Tensor, grid: Grid, name: str, is_labels: bool) -> Volume:
    values = tensor[0, 0].detach().cpu()
    return Volume((values.round().to(torch.int32) if is_labels else values).numpy(), grid, name, is_labels=is_labels)
