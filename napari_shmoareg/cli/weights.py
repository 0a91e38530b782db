"""Which weights and which device a command uses."""

from __future__ import annotations

from napari_shmoareg.geometry import InputError


def chosen_weights(asked: str | None) -> str:
    """The weights that were asked for, or the shipped ones.

    Raises
    ------
    InputError
        If none were asked for and none are shipped.
    """
    if asked is not None:
        return asked
    from napari_shmoareg.io.checkpoint import shipped_weights

    names = shipped_weights()
    if not names:
        raise InputError("No weights are shipped with this version. Give --weights FILE.safetensors.")
    return names[0]


def chosen_device(asked: str) -> str:
    """The device that "auto", "cpu" or "cuda" means here.

    Raises
    ------
    InputError
        If "cuda" was asked for and there is none.
    """
    from napari_shmoareg.engine.registration import find_device

    return find_device(asked).type
