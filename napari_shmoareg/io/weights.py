"""Which weights and which device are used, and why."""

from __future__ import annotations

import hashlib
from pathlib import Path

import napari_shmoareg
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.untrusted import user_path

LARGE, SMALL = "paper", "small"  # by the preset: for a GPU, for a CPU
NO_NETWORK = "none"  # in place of weights, where no network deforms


def chosen_weights(asked: str | None, device: str = "cpu") -> tuple[str, str]:
    """The weights that were asked for, or those of the shipped ones that fit the device; and why.

    Raises
    ------
    InputError
        If none were asked for and none are shipped.
    """
    if asked is not None and asked != "auto":
        return asked, f"{asked}, as asked"
    from napari_shmoareg.io.model_card import shipped_weights

    names = shipped_weights()
    if not names:
        raise InputError("No weights are shipped with this version. Give --weights FILE.safetensors.")
    if len(names) == 1:
        return names[0], f"{names[0]}: the only weights that are shipped"
    wanted = LARGE if device == "cuda" else SMALL
    name = wanted if wanted in names else names[0]
    return (
        name,
        f"{name}: the {'largest' if device == 'cuda' else 'fastest'} of {', '.join(names)}, as it runs on {device}",
    )


def chosen_device(asked: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here.

    Raises
    ------
    InputError
        If "cuda" was asked for and there is none.
    """
    from napari_shmoareg.engine.device import find_device

    return find_device(asked).type


def checksum_of(weights: str) -> str:
    """The SHA-256 of weights, shipped or a file: others of the same name give other numbers."""
    shipped = Path(napari_shmoareg.__file__).parent / "weights" / f"{weights}.safetensors"
    return hashlib.sha256((shipped if shipped.is_file() else user_path(weights)).read_bytes()).hexdigest()


def routing_of(weights: str) -> str | None:
    """What the card of weights says of their routing (`routing_sentence`); empty where that was not measured.

    None where there are no such weights here, as where a registration was made elsewhere.
    """
    from napari_shmoareg.analysis.routing_scores import routing_sentence
    from napari_shmoareg.io.model_card import read_card

    try:
        card = read_card(weights)
    except InputError:
        return None
    try:
        return routing_sentence(card)
    except InputError as error:
        return str(error)
