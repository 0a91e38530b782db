"""A synthetic abdomen: grey values and organs as functions of position.

Organs are smooth shapes given by a depth d(x), approximately the distance in mm to the surface,
positive inside; later ones are painted over earlier ones. World axes in mm: x to the right, y to
the front, z up. Points p are (3, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def ellipsoid(
    p: Array, centre: Sequence[float], radii: Sequence[float], turn: float = 0.0
) -> Array:
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
    """The smaller of two depths, with its corner rounded over `width` mm."""
    h = np.clip(0.5 + (b - a) / (2 * width), 0, 1)
    return b + (a - b) * h - width * h * (1 - h)


ORGANS = {
    1: "liver",
    2: "spleen",
    3: "right kidney",
    4: "left kidney",
    5: "stomach",
    6: "gallbladder",
    7: "aorta",
    8: "vertebrae",
}
"""Organ names by label value."""


class Anatomy(NamedTuple):
    """The phantom at N points.

    Attributes
    ----------
    grey : (N,) float32
        From 0 (air) to about 1 (fat), as in a T1-weighted scan.
    organs : (N,) uint8
        Keys of `ORGANS`; 0 elsewhere.
    body : (N,) bool
    """

    grey: Array
    organs: NDArray[np.uint8]
    body: NDArray[np.bool_]


def anatomy(points: NDArray) -> Anatomy:
    """The phantom at points (N, 3) in mm."""
    everywhere = np.ascontiguousarray(points.T, dtype=np.float32)
    outline = _body(everywhere)
    body = outline > -2
    canvas = _Canvas(everywhere[:, body])
    canvas.paint(outline[body], 0.42)
    _walls(canvas, outline[body])
    _bowel(canvas)
    _spine_and_vessels(canvas, outline[body])
    _organs(canvas)
    grey, organs = np.zeros(len(points), np.float32), np.zeros(len(points), np.uint8)
    grey[body], organs[body] = canvas.grey, canvas.organs
    return Anatomy(grey, organs, outline > 0)


class _Canvas:
    """Grey values and organs at points p (3, N), painted back to front."""

    def __init__(self, p: Array) -> None:
        self.p = p
        self.grey = np.zeros(p.shape[1], np.float32)
        self.organs = np.zeros(p.shape[1], np.uint8)
        self.cavity = np.zeros(p.shape[1], np.float32)

    def paint(
        self, depth: Array, value: Array | float, organ: int | None = None, soft: float = 1.6
    ) -> None:
        """Paint a tissue over existing ones, with an edge of `soft` mm; organ=0 clears the
        label.
        """
        cells = np.flatnonzero(depth > -soft)
        share = np.clip(0.5 + depth[cells] / (2 * soft), 0, 1)
        new = value[cells] if isinstance(value, np.ndarray) else value
        self.grey[cells] += share * (new - self.grey[cells])
        if organ is not None:
            self.organs[cells[depth[cells] > 0]] = organ

    def texture(self, wavelength: float, seed: int) -> Array:
        """A smooth random pattern from about -1 to 1, fixed to the tissue."""
        rng = np.random.default_rng(seed)
        total: Array = np.zeros(self.p.shape[1], np.float32)
        for _ in range(6):
            direction = rng.normal(size=3)
            wave = (
                direction
                / np.linalg.norm(direction)
                * 2
                * np.pi
                / (wavelength * rng.uniform(0.75, 1.4))
            )
            total += np.sin(
                wave.astype(np.float32) @ self.p + np.float32(rng.uniform(0, 2 * np.pi))
            )
        return total / np.float32(3)


def _body(p: Array) -> Array:
    """Depth below the skin: an oval that narrows at the waist."""
    waist = 1 - 0.05 * np.cos((p[2] + 75) / 45)
    x, y = p[0] / (146 * waist), (p[1] - 4) / (100 * waist)
    y = np.where(y < 0, y * 1.08, y)
    y = y - np.where(y < 0, 0.07 * np.exp(-((p[0] / 16) ** 2)), 0)  # the furrow of the back
    radius = (np.abs(x) ** 2.5 + np.abs(y) ** 2.5) ** 0.4
    return 110 * (1 - radius)


def _walls(canvas: _Canvas, outline: Array) -> None:
    """Fat under the skin, muscles, ribs, and the fat of the cavity."""
    x, y, z = canvas.p
    fine, coarse = canvas.texture(7, 1), canvas.texture(30, 2)
    side = np.abs(np.arctan2(x, y + 10)) / np.pi
    fat = 13 + 4 * side + 1.5 * coarse
    canvas.paint(outline - 2.2, 0.88 + 0.03 * fine + 0.03 * coarse)
    strands = 0.36 + 0.04 * fine
    canvas.paint(outline - fat, strands)
    layer = outline - fat - 4.5  # a thin sheet of fat between the muscle layers
    canvas.paint(1.2 - np.abs(layer) - 12 * np.exp(-((side / 0.12) ** 2)), 0.6, soft=1.0)
    canvas.cavity = outline - fat - 10 - 5 * np.exp(-(((side - 0.08) / 0.06) ** 2))
    canvas.paint(canvas.cavity, 0.74 + 0.05 * coarse + 0.04 * fine)
    ring = 4.5 - np.abs(outline - fat - 6)
    rib = 7 * np.cos((z + 70 * side) * 2 * np.pi / 34) - 2.5
    rib = np.minimum(np.minimum(ring, rib), (z + 70 * side - 40) / 3)
    canvas.paint(np.minimum(rib, 90 * (side - 0.22)), 0.16)
    canvas.paint(np.minimum(rib - 2, 90 * (side - 0.22)), 0.58)
    for sign in (-1, 1):
        erector = ellipsoid(canvas.p, (sign * 30, -72, 0), (27, 19, 400))
        canvas.paint(
            np.minimum(erector, outline - 12), strands + 0.05 * np.sin(x / 4 + y / 3), soft=2
        )
        quadratus = ellipsoid(canvas.p, (sign * 58, -62, -10), (22, 11, 400), turn=sign * 0.4)
        canvas.paint(np.minimum(quadratus, outline - 12), strands)
        psoas = 7 + 12 / (1 + np.exp(z / 25))
        canvas.paint(
            psoas - np.hypot((x - sign * (33 + 0.04 * (40 - z))) * 1.1, y + 40 + 0.05 * z), strands
        )


def _bowel(canvas: _Canvas) -> None:
    """Loops of small bowel in front, the colon at both sides."""
    x, y, z = canvas.p
    bend = 7 * canvas.texture(50, 3)
    loops = (
        np.sin((x + 1.6 * bend) / 7.2)
        + np.sin((y - bend + 0.3 * x) / 6.8)
        + 0.9 * np.sin((z + bend - 0.2 * y) / 8.4)
    )
    region = np.minimum(
        canvas.cavity - 5, np.minimum((24 - z + 0.25 * x) * 0.6, y + 6 + 0.1 * np.abs(x))
    )
    wall = np.minimum(5.5 * (loops + 0.45), region)
    canvas.paint(wall, 0.5 + 0.03 * canvas.texture(9, 4))
    canvas.paint(wall - 3.2, 0.33 + 0.09 * canvas.texture(28, 5))
    for sign, height in ((1, -8), (-1, 12)):
        haustra = 15 + 2.5 * np.cos(z / 5.5)
        tube = haustra - np.hypot(
            x - sign * (91 - 0.12 * (z + 40)), (y + 8 + 4 * np.sin(z / 30)) * 1.05
        )
        colon = np.minimum(np.minimum(tube, canvas.cavity - 3), height - z)
        canvas.paint(colon, 0.44)
        canvas.paint(colon - 2.6, 0.26 + 0.09 * canvas.texture(16, 6))


def _spine_and_vessels(canvas: _Canvas, outline: Array) -> None:
    p = canvas.p
    x, y, z = p
    phase = np.cos((z - 6) * 2 * np.pi / 36)
    column = ellipsoid(p, (0, -46, 0), (24, 18, 1e4)) - 1.6 * phase
    canvas.paint(column, 0.27 + 0.05 * np.abs(y + 46) / 12)  # discs
    vertebra = np.minimum(column + 2, 11 * (0.78 - phase))
    arch = np.minimum(13 - np.hypot(x, y + 69), np.hypot(x, y + 67) - 8)
    process = np.minimum(3.5 - np.abs(x) * (1 + 0.1 * phase), 14 - np.abs(y + 84)) - 5 * (
        phase + 0.1
    )
    wing = np.minimum(4 - np.abs(y + 66 - 0.0035 * x * x), 36 - np.abs(x)) - 5 * (phase + 0.55)
    bone = np.maximum(
        np.maximum(vertebra, np.minimum(arch, 9 * (0.8 - phase))), np.maximum(process, wing)
    )
    bone = np.minimum(bone, outline - 9)
    canvas.paint(bone, 0.2, 8)
    canvas.paint(bone - 1.8, 0.62 + 0.07 * canvas.texture(6, 7))
    canvas.paint(9 - np.hypot(x, (y + 67) * 1.1), 0.14, 0)  # fluid around the cord
    canvas.paint(4.8 - np.hypot(x, y + 67), 0.5)
    aorta = 9.5 - np.hypot(x + 8 - 3 * np.sin(z / 50), y + 17 - 2 * np.cos(z / 40))
    canvas.paint(aorta, 0.42, 7)
    canvas.paint(aorta - 1.4, 0.97)
    cava = 10 - np.hypot((x - 20 - 2 * np.sin(z / 45)) * 0.9, (y + 18) * 1.25)
    canvas.paint(cava, 0.42)
    canvas.paint(cava - 1, 0.83)


def _organs(canvas: _Canvas) -> None:
    p, cavity = canvas.p, canvas.cavity
    y = p[1]
    fine = canvas.texture(6.5, 8)
    pancreas = tube(
        p, [(34, 6, 6), (20, 12, 16), (-12, 12, 22), (-48, -8, 34)], 10
    ) + 1.2 * canvas.texture(9, 9)
    canvas.paint(pancreas, 0.56 + 0.09 * canvas.texture(5, 10))
    for organ, sign, height in ((3, 1, -14), (4, -1, 2)):
        _kidney(canvas, organ, sign, height, fine)
    spleen = ellipsoid(p, (-98, -22, 50), (34, 48, 52), turn=0.3)
    spleen = np.minimum(
        smooth_min(spleen, -ellipsoid(p, (-58, -4, 50), (32, 34, 64)), 5), cavity - 2.5
    )
    canvas.paint(spleen, 0.5 + 0.02 * fine + 0.02 * canvas.texture(14, 11), 2)
    stomach = smooth_min(
        -ellipsoid(p, (-50, 32, 58), (40, 35, 48), turn=-0.3),
        -tube(p, [(-40, 38, 28), (4, 42, 14)], 15),
        8,
    )
    stomach = np.minimum(-stomach, cavity - 3)
    canvas.paint(stomach, 0.46, 5)
    canvas.paint(
        stomach - 3.4 - 1.2 * canvas.texture(10, 12),
        np.clip(0.2 + 0.0012 * (y - 30), 0.1, 0.3) + 0.03 * fine,
    )
    _liver(canvas, fine)
    gall = ellipsoid(p, (50, 38, 4), (12, 19, 20), turn=0.4)
    canvas.paint(gall, 0.4, 6)
    canvas.paint(gall - 1.6, np.clip(0.12 - 0.004 * (y - 36), 0.08, 0.3))


def _kidney(canvas: _Canvas, organ: int, sign: int, height: float, fine: Array) -> None:
    """Cortex, pyramids, and a sinus of fat that opens to the middle."""
    p = canvas.p
    x, y, z = p
    bent = np.stack(
        [x - sign * (62 - 0.13 * (z - height)), y + 34 - 0.08 * (z - height), z - height]
    )
    whole = ellipsoid(bent, (0, 0, 0), (26, 23, 48), turn=-sign * 0.5)
    hilum = ellipsoid(bent, (-sign * 20, 9, 0), (22, 9, 17), turn=-sign * 0.5)
    whole = smooth_min(whole, -hilum, 3)
    canvas.paint(whole, 0.64 + 0.02 * fine, organ)
    angle = np.arctan2(bent[1], bent[0])
    pyramids = np.minimum(whole - 6.5, 5 * np.cos(3.5 * angle + 0.4) * np.cos(bent[2] / 5.2) + 2.2)
    canvas.paint(pyramids, 0.4)
    sinus = ellipsoid(bent, (-sign * 7, 3, 0), (11, 8, 24), turn=-sign * 0.5)
    canvas.paint(sinus, 0.72)
    canvas.paint(tube(p, [(sign * 56, -30, height), (sign * 34, -22, height - 3)], 5), 0.2, soft=2)


def _liver(canvas: _Canvas, fine: Array) -> None:
    """A large right lobe, a thin left one, and the trees of veins in them."""
    p = canvas.p
    right = ellipsoid(p, (70, 6, 48), (78, 84, 74), turn=-0.2)
    left = ellipsoid(p, (8, 52, 66), (62, 34, 38), turn=0.25)
    below = ellipsoid(p, (22, -20, -12), (54, 44, 56))  # the hollow over kidney, pancreas and bowel
    liver = -smooth_min(-right, -left, 12)
    liver = np.minimum(smooth_min(liver, -below, 10), canvas.cavity - 2.5)
    organs = canvas.organs
    liver = np.where((organs == 3) | (organs == 7) | (organs == 8), -5, liver).astype(np.float32)
    canvas.paint(liver, 0.57 + 0.025 * fine + 0.02 * canvas.texture(18, 13), 1)
    portal = [(26, 8, 34), (52, 12, 48), (82, 22, 52), (104, 28, 46)]
    veins: list[tuple[Sequence[tuple[float, float, float]], float]] = [
        (portal, 5.0),
        ([(52, 12, 48), (74, -22, 50), (94, -42, 44)], 3.8),
        ([(40, 10, 42), (20, 48, 62), (-14, 62, 68)], 3.6),
        ([(82, 22, 52), (98, 50, 36)], 3.0),
        ([(24, -12, 90), (62, -14, 78), (100, -18, 70)], 4.4),
        ([(24, -10, 90), (54, 30, 80), (74, 62, 66)], 4.2),
        ([(24, -8, 90), (16, 40, 86), (2, 70, 78)], 3.6),
        ([(82, 22, 52), (90, 0, 26), (92, -22, 6)], 3.2),
    ]
    for path, width in veins:
        canvas.paint(np.minimum(tube(p, path, width) + 0.6 * fine, liver - 4), 0.84, soft=1.4)
