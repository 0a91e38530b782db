"""Other contrasts of the same image, to see which methods stand them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import InputError, Volume

CHANGES = ("none", "invert", "gamma")
GAMMA = 0.5
SURROUNDS = 0.05  # share of the voxels from which on the lowest value is background


def change_contrast(volume: Volume, change: str, gamma: float = GAMMA) -> Volume:
    """An image with other intensities at the same places.

    Parameters
    ----------
    volume : Volume
    change : {"none", "invert", "gamma"}
        "invert" turns bright and dark round, v -> max + min - v, within the content.
        Ours: where the lowest value fills at least 5 % of the image (the 0 around a skull-stripped
        brain), it is background and stays what it is, and the content is the rest; elsewhere the
        whole image is turned.
        "gamma" scales to [0, 1], takes the power, and scales back.
    gamma : float
        The exponent; below 1 brightens.

    Returns
    -------
    Volume
        float32, the same range of values; "none" gives the volume itself.

    Raises
    ------
    InputError
        If there is no such change, or the exponent is not positive.
    """
    if change not in CHANGES:
        raise InputError(f"The change is one of {', '.join(CHANGES)}; got {change!r}.")
    if not (gamma > 0 and np.isfinite(gamma)):
        raise InputError(f"The exponent of a gamma is a positive number; got {gamma}.")
    if change == "none":
        return volume
    values = volume.values.astype(np.float32)
    low, high = values.min(), values.max()
    if change == "gamma":
        scaled = (values - low) / max(float(high - low), 1e-30)
        return volume.with_values(low + (high - low) * scaled ** np.float32(gamma))
    return volume.with_values(_inverted(values, low))


def _inverted(values: NDArray[np.float32], low: np.float32) -> NDArray[np.float32]:
    content = values != low
    if content.mean() > 1 - SURROUNDS or not content.any():
        content = np.ones_like(content)
    inner = values[content]
    result = values.copy()
    result[content] = inner.max() + inner.min() - inner
    return result
