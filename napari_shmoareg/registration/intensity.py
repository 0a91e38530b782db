"""Intensities of an image: background, content, scale to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Volume, background, float_type

CONTENT = 0.05  # of the range: how far a voxel differs from the background to count as content
TAILS = (0.1, 99.9)  # percentiles of the content taken as its darkest and brightest


@dataclass(frozen=True)
class Intensity:
    """The scale of one image.

    Ours: the darkest and the brightest value are percentiles (0.1 and 99.9) of the *content*,
    the voxels that differ from the background, so that the amount of empty space around a
    head changes nothing.  Where the background is darker than the content, it becomes 0.
    Voxels that hold exactly the least value are left out too: the padding (-2048) around the
    round field of view of a CT is nothing seen, and would leave little contrast to the rest.

    Attributes
    ----------
    background, low, high : float
        In the image's own units; `low` becomes 0 and `high` becomes 1.
    """

    background: float
    low: float
    high: float

    @classmethod
    def of(cls, volume: Volume) -> Intensity:
        """Measured on all voxels of an image (finite, not constant); once, as a volume does not
        change.
        """
        if volume not in _MEASURED:
            _MEASURED[volume] = cls._measure(volume)
        return _MEASURED[volume]

    def remember(self, volume: Volume) -> None:
        """Let this be the scale of a volume: that of the finer image it was made of."""
        _MEASURED[volume] = self

    @classmethod
    def _measure(cls, volume: Volume) -> Intensity:
        around = background(volume)
        values = volume.values.ravel()
        other = values[(values != around) & (values != values.min())]
        if not other.size:  # two values only
            other = values[values != around]
        low, high = (float(v) for v in np.percentile(other, TAILS))
        span = max(high, around) - min(low, around)
        content = other[np.abs(other - around) > CONTENT * span]
        if content.size:
            low, high = (float(v) for v in np.percentile(content, TAILS))
        low = min(low, around)
        high = max(high, around)
        return cls(around, low, high)

    def scale(self, values: NDArray) -> NDArray[np.float32]:
        """Values to [0, 1], clipped, float32."""
        scaled = self._above(values, self.low) / np.float32(self.high - self.low)
        return np.clip(scaled, 0, 1, out=scaled)

    def content(self, values: NDArray) -> NDArray[np.bool_]:
        """Which voxels differ from the background by more than 5 % of the range.

        A noisy background differs too: the content is then, at worst, the whole field of view.
        """
        return np.abs(self._above(values, self.background)) > CONTENT * (self.high - self.low)

    def _above(self, values: NDArray, offset: float) -> NDArray[np.float32]:
        """Values less an offset, float32; subtracted in float64 where float32 loses differences, as
        around 2^31.
        """
        kind = float_type(self.low, self.high)
        return (np.asarray(values, dtype=kind) - kind.type(offset)).astype(np.float32, copy=False)


def background_of(volume: Volume) -> float:
    """The brightness of a volume's background once it is scaled, in [0, 1]."""
    intensity = Intensity.of(volume)
    return float(intensity.scale(np.array([intensity.background]))[0])


_MEASURED: WeakKeyDictionary[Volume, Intensity] = WeakKeyDictionary()  # of volumes still in use


def content_points(volume: Volume, intensity: Intensity) -> NDArray[np.float64]:
    """Voxel indices (n, 3) between which all content lies: the first and last along every line of
    axis 2.

    The extent of the content along *any* direction is that of these points, so a rotated box
    around them is as tight as around all voxels.  Without content, the corners of the volume.
    """
    mask = intensity.content(volume.values)
    i, j = np.nonzero(mask.any(axis=2))
    if not i.size:
        ends = [(0, n - 1) for n in mask.shape]
        return np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(8, 3).astype(np.float64)
    lines = mask[i, j]
    first = lines.argmax(axis=1)
    last = mask.shape[2] - 1 - lines[:, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([i, j, first], -1), np.stack([i, j, last], -1)]).astype(
        np.float64
    )
