"""Intensities of an image: background, content, scale to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.geometry import Volume, background, float_type

CONTENT = 0.05  # fraction of the range by which content differs from the background
TAILS = (0.1, 99.9)  # percentiles of the content used as its darkest and brightest values


@dataclass(frozen=True)
class Intensity:
    """Intensity scale of an image.

    Ours: the darkest and the brightest value are percentiles (0.1 and 99.9) of the *content*,
    the voxels that differ from the background, so that the amount of empty space around a head
    does not matter.  A background darker than the content becomes 0.  Voxels with exactly the
    minimum value are excluded too: the padding (-2048) around the circular field of view of a CT
    would compress the contrast of the rest.

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
        """Measure on all voxels of an image (finite, not constant); cached per volume."""
        if volume not in _MEASURED:
            _MEASURED[volume] = cls._measure(volume)
        return _MEASURED[volume]

    def remember(self, volume: Volume) -> None:
        """Set this as the scale of a volume, such as that of the finer image it was made of."""
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
        """Scale values to [0, 1], clipped, float32."""
        scaled = self._above(values, self.low) / np.float32(self.high - self.low)
        return np.clip(scaled, 0, 1, out=scaled)

    def content(self, values: NDArray) -> NDArray[np.bool_]:
        """Return a mask of voxels that differ from the background by more than 5 % of the range.

        With a noisy background it may include the whole field of view.
        """
        return np.abs(self._above(values, self.background)) > CONTENT * (self.high - self.low)

    def _above(self, values: NDArray, offset: float) -> NDArray[np.float32]:
        """Subtract an offset, in float64 if float32 is too coarse (as around 2^31); float32."""
        kind = float_type(self.low, self.high)
        return (np.asarray(values, dtype=kind) - kind.type(offset)).astype(np.float32, copy=False)


def background_of(volume: Volume) -> float:
    """Return the scaled brightness of a volume's background, in [0, 1]."""
    intensity = Intensity.of(volume)
    return float(intensity.scale(np.array([intensity.background]))[0])


_MEASURED: WeakKeyDictionary[Volume, Intensity] = WeakKeyDictionary()  # cache


def content_points(volume: Volume, intensity: Intensity) -> NDArray[np.float64]:
    """Return the first and last content voxels along every line of axis 2, (n, 3) indices.

    They have the same extent as the content along *any* direction, so a rotated bounding box of
    them is as tight as that of all voxels.  Without content, the corners of the volume.
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
