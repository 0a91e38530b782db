"""The value that stands around what an image shows."""

from __future__ import annotations

import numpy as np

from napari_shmoareg.geometry.volume import Volume


def background(volume: Volume) -> float:
    """The value that stands around what is shown.

    Ours: the median of the six border faces: 0 for a skull-stripped brain, air for a CT with
    air around, and what is cut through where the image is cropped to the inside of a body.
    Labels have 0.
    """
    if volume.is_labels:
        return 0.0
    v = volume.values
    faces = [v[(slice(None),) * axis + (end,)].ravel() for axis in range(3) for end in (0, -1)]
    return float(np.median(np.concatenate(faces)))
