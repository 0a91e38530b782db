"""Smooth shapes: how deep a point lies in them.

A depth is about the distance in mm to the surface, positive inside.  Points p are (3, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def ellipsoid(p: Array, centre: Sequence[float], radii: Sequence[float], turn: float = 0.0) -> Array:
    """Depth in an ellipsoid, turned about z by `turn` radians."""
    x, y, z = (p[axis] - np.float32(centre[axis]) for axis in range(3))
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x, y, z = (c * x + s * y) / radii[0], (c * y - s * x) / radii[1], z / radii[2]
    near = np.sqrt(x * x + y * y + z * z)
    slope = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
    depth: Array = near * (1 - near) / np.maximum(slope, 1e-6)
    return np.where(near < 1e-3, np.float32(min(radii)), depth)


def tube(p: Array, path: Sequence[Sequence[float]], radius: float) -> Array:
    """Depth in a tube of `radius` mm along a path of points."""
    depth = np.full(p.shape[1], -1e3, np.float32)
    corners = np.array(path, np.float32)
    for start, stop in pairwise(corners):
        along = stop - start
        away = p - start[:, None]
        t = np.clip(along @ away / (along @ along), 0, 1)
        depth = np.maximum(depth, radius - np.sqrt(((away - along[:, None] * t) ** 2).sum(axis=0)))
    return depth


def smooth_min(a: Array, b: Array, width: float) -> Array:
    """The lesser of two depths, its corner rounded over `width` mm."""
    h = np.clip(0.5 + (b - a) / (2 * width), 0, 1)
    return b + (a - b) * h - width * h * (1 - h)
