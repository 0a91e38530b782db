"""The body of a synthetic person: proportions, organ positions, trunk, chest, bones, couch.

Positions are in mm towards right, front and up (RAS), with 0 at the centre of the body at kidney
height.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.training.torso.canvas import Canvas

# The cavity of the standard body extends 125 mm to each side of its centre, and 80 mm to the front
# and the back.
WIDE, DEEP = 125.0, 80.0
TOP = 285.0  # extent of a torso, up and down
LEVELS = (-280.0, -200, -130, -60, 0, 60, 120, 200, 280)  # heights of the factors below
WIDTH = (1.02, 1.04, 1.0, 0.97, 0.96, 0.98, 1.0, 1.0, 0.97)
DEPTH = (1.0, 1.0, 0.98, 0.97, 1.0, 1.0, 1.0, 0.98, 0.95)
FAT = (1.6, 1.5, 1.25, 1.1, 1.0, 0.9, 0.7, 0.6, 0.6)
CAVITY = (0.58, 0.66, 0.86, 0.98, 1.0, 1.0, 0.98, 0.95, 0.88)


@dataclass(frozen=True)
class Torso:
    """One person, in the state of one image.

    Parameters
    ----------
    width, depth : float
        Half-axes of the body at kidney height, mm.
    fat : float
        Thickness of the fat under the skin there, mm.
    wall : float
        Thickness of the lateral muscles, mm.
    height : float
        Height of vertebrae and organs, relative to the standard body.
    seed : int
        Seed for size, position and shape of each organ.
    breath : float
        Height of the diaphragm relative to mid-breath, mm.
    moment : int
        Seed for what changes over time: gas and fluid, bladder, bowel loops, couch.
    """

    width: float
    depth: float
    fat: float
    wall: float
    height: float
    seed: int
    breath: float = 0.0
    moment: int = 0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Torso:
        """Generate a random person."""
        fat = float(np.clip(np.exp(rng.normal(np.log(15), 0.55)), 4, 45))
        # visceral fat grows with subcutaneous fat
        lean = float(np.clip(rng.normal(152, 9), 134, 174)) + 0.4 * (fat - 15)
        width, depth = lean + 0.85 * fat, lean * float(rng.uniform(0.64, 0.74)) + 0.95 * fat
        wall, height = float(rng.uniform(11, 19)), float(rng.uniform(0.92, 1.1))
        return cls(width, depth, fat, wall, height, int(rng.integers(2**31))).at_another_time(rng)

    def at_another_time(self, rng: np.random.Generator) -> Torso:
        """The same person at another time: another breath, other contents."""
        return replace(self, breath=float(rng.uniform(-18, 18)), moment=int(rng.integers(2**31)))


class Body:
    """Proportions of a torso along the body axis.

    Parameters
    ----------
    torso : Torso
    z : (Z,) array
        Heights at which they are evaluated, mm.

    Attributes
    ----------
    width, depth : (Z,) array
        Half-axes of the skin surface.
    skin_back, muscle_side, muscle_back, muscle_front, side, back, front : (Z,) array
        Borders of skin, muscles and cavity.
    spine : (Z,) array
        Centre of the vertebral bodies, towards the front.
    across, through, middle : float
        Size of the cavity at kidney height relative to the standard body, and its centre towards
        the front.
    """

    def __init__(self, torso: Torso, z: NDArray[np.float64]) -> None:
        self.torso, self.z = torso, z
        rng = np.random.default_rng([torso.seed, 1])
        wobble = 1 + rng.normal(0, 0.02, (4, len(LEVELS)))
        shares = np.array([WIDTH, DEPTH, FAT, CAVITY]) * wobble
        back, front, side = rng.uniform(0.7, 1.1), rng.uniform(0.8, 1.3), rng.uniform(0.7, 1.0)
        self._bend, self._phase = rng.uniform(3, 9), rng.uniform(-0.6, 0.6)
        self._shares, self._fat = shares, (back, front, side)
        kidneys = self._measures(np.zeros(1))
        self.across = float(kidneys["side"][0]) / WIDE
        self.through = float(kidneys["front"][0] - kidneys["back"][0]) / (2 * DEEP)
        self.middle = float(kidneys["front"][0] + kidneys["back"][0]) / 2
        measures = self._measures(z)
        self.width, self.depth, self.spine = measures["width"], measures["depth"], measures["spine"]
        self.skin_back, self.muscle_side = measures["skin_back"], measures["muscle_side"]
        self.muscle_back, self.muscle_front = measures["muscle_back"], measures["muscle_front"]
        self.side, self.back, self.front = measures["side"], measures["back"], measures["front"]

    def _measures(self, z: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        t, (back, front, side) = self.torso, self._fat
        width, depth, fat, cavity = (
            np.interp(z, np.array(LEVELS) * t.height, share) for share in self._shares
        )
        width, depth, fat = t.width * width, t.depth * depth, t.fat * fat
        found = {
            "width": width,
            "depth": depth,
            "skin_back": -0.93 * depth,
            "muscle_side": width - side * fat,
        }
        found["muscle_back"] = found["skin_back"] + np.minimum(back * fat, 0.35 * depth)
        found["muscle_front"] = depth - np.minimum(front * fat, 0.45 * depth)
        found["side"] = (found["muscle_side"] - t.wall) * cavity
        found["back"] = found["muscle_back"] + 0.3 * t.depth * (2 - cavity)
        found["front"] = found["muscle_front"] - 0.5 * t.wall * (3 - 2 * cavity)
        found["spine"] = found["back"] + 14 + self._bend * np.sin(z / 105 + self._phase)
        return found

    def spine_at(self, z: float) -> float:
        """Centre of the vertebral body at a height, towards the front."""
        return float(self._measures(np.array([z]))["spine"][0])

    def organ(self, name: str) -> Organ:
        """Make an organ; its random numbers only depend on the person and its name."""
        return Organ(self, np.random.default_rng([self.torso.seed, zlib.crc32(name.encode())]))

    def moment_rng(self, name: str) -> np.random.Generator:
        """Random numbers for what changes over time."""
        return np.random.default_rng([self.torso.moment, zlib.crc32(name.encode())])


@dataclass(frozen=True)
class Organ:
    """Maps an organ of the standard body to a person.

    Attributes
    ----------
    body : Body
    rng : numpy.random.Generator
    """

    body: Body
    rng: np.random.Generator

    def at(
        self, x: float, y: float, z: float, *, breath: float = 0.0, spread: float = 6.0
    ) -> NDArray[np.float64]:
        """Map a standard position to this person.

        Parameters
        ----------
        x, y, z : float
            mm; y relative to the centre of the cavity.
        breath : float
            Share of the diaphragm's motion that the organ follows.
        spread : float
            Standard deviation over people, mm.
        """
        body = self.body
        position = np.array(
            [x * body.across, body.middle + y * body.through, z * body.torso.height]
        )
        return position + self.rng.normal(0, spread, 3) + [0.0, 0.0, breath * body.torso.breath]

    def size(self, spread: float = 0.1) -> float:
        """Factor for the radii: body size and variation over people (SD of the logarithm)."""
        body = self.body
        # organs grow less than the cavity
        usual = (body.across * body.through * body.torso.height) ** 0.25
        return float(usual * np.exp(spread * np.clip(self.rng.standard_normal(), -2, 2)))

    def line(
        self, points: Sequence[Sequence[float]], *, breath: float = 0.0, spread: float = 4.0
    ) -> NDArray[np.float64]:
        """Map a tube through standard positions (x, y, z, radius); (n, 4)."""
        factor = self.size()
        return np.array(
            [
                [*self.at(*point[:3], breath=breath, spread=spread), point[3] * factor]
                for point in points
            ]
        )


EXPONENT = 2.35  # of the superellipses of the trunk
LUNGS = ("right lung", "left lung", "lung vessels")
SOFT = ("muscle", "visceral fat", "subcutaneous fat", *LUNGS)
VISCERAL_FAT = ("visceral fat",)
INF = float("inf")


def draw_trunk(canvas: Canvas, body: Body) -> None:
    """Paint the trunk from skin to cavity: subcutaneous fat, muscles, visceral fat."""
    lumpy = 0.03 * canvas.noise[0]
    y = canvas.axes[1].view(1, -1, 1)
    outer = canvas.ellipse(body.width, body.depth, 0 * body.depth, EXPONENT)
    canvas.paint("subcutaneous fat", (outer < 1 + lumpy) & (y > canvas.row(body.skin_back)))
    half, middle = (
        (body.muscle_front - body.muscle_back) / 2,
        (body.muscle_front + body.muscle_back) / 2,
    )
    muscle = canvas.ellipse(body.muscle_side, half, middle, EXPONENT)
    canvas.paint("muscle", muscle < 1 + 2 * lumpy, over=("subcutaneous fat",))
    half, middle = (body.front - body.back) / 2, (body.front + body.back) / 2
    canvas.cavity = canvas.ellipse(body.side, half, middle, EXPONENT)
    canvas.paint("visceral fat", canvas.cavity < 1 + 2 * lumpy, over=("muscle",))
    _part_muscles(canvas, body)


def _part_muscles(canvas: Canvas, body: Body) -> None:
    """Paint fat between and within muscles: lateral layers, the furrow of the back, marbling."""
    x, y, z = canvas.coordinates()
    marbled = canvas.noise[1] + 0.4 * canvas.fine_noise > 2.0 - 0.015 * body.torso.fat
    # 0 to 1 across the wall
    ring = (canvas.cavity - 1) * canvas.row(body.side / EXPONENT / body.torso.wall)
    layers = ((ring - 0.36).abs() < 0.05) | ((ring - 0.7).abs() < 0.05)
    layers &= (
        (y > canvas.row(body.spine))
        & (x.abs() > canvas.row(0.55 * body.side))
        & (z < 30 * body.torso.height)
    )
    furrow = y < canvas.row(body.muscle_back + 9) - 0.9 * x.abs()
    middle = (x.abs() < 3) & (y > canvas.row(body.front))
    canvas.paint(
        "subcutaneous fat",
        (marbled & (canvas.cavity > 1.25)) | layers | furrow | middle,
        over=("muscle",),
    )


def draw_chest(canvas: Canvas, body: Body) -> Tensor:
    """Paint lungs, heart and oesophagus; return the height of the diaphragm, (X, Y, 1)."""
    torso, rng = body.torso, body.organ("lungs").rng
    x, y, z = canvas.coordinates()
    right, left = (torso.height * v + torso.breath for v in (rng.normal(100, 7), rng.normal(87, 7)))
    across, through = WIDE * body.across, DEEP * body.through
    off = ((x.abs() - 0.46 * across) / (0.6 * across)) ** 2 + ((y - body.middle - 4) / through) ** 2
    drop = 52 * torso.height * off.clamp_max(1.5) ** 1.6 + 0.16 * (body.middle - y).clamp_min(0)
    floor = torch.where(x > 0, right, left) - drop
    part = canvas.box([-INF, -INF, float(floor.min())], [INF, INF, INF])
    if part is not None:
        x, y, z = canvas.coordinates(part)
        chest = (z > floor) & (canvas.cavity[part] < 0.96)
        gap = 20 + 8 * canvas.noise[2][part]
        canvas.paint("right lung", chest & (x > gap), over=VISCERAL_FAT, part=part)
        canvas.paint("left lung", chest & (-x > gap), over=VISCERAL_FAT, part=part)
        canvas.paint(
            "lung vessels", (canvas.fine_noise[part] > 1.7) & chest, over=LUNGS[:2], part=part
        )
    heart = body.organ("heart")
    radii = np.array([56.0, 46.0, 52.0]) * heart.size(0.08)
    centre = heart.at(-24, 14, 126, breath=0.5)
    canvas.ellipsoid(
        "heart", centre, radii, turn=(0.0, 0.5, 0.4), rough=0.07, over=(*LUNGS, "visceral fat")
    )
    gullet = np.array(
        [
            [x, body.spine_at(h) + 47, h, 8]
            for h, x in ((TOP, 2), (180.0, 3), (120.0, -4), (92.0, -22))
        ]
    )
    canvas.tube("oesophagus", gullet, over=("visceral fat", *LUNGS))
    return floor


def draw_bones(canvas: Canvas, body: Body) -> None:
    """Paint spine, ribs, sternum and pelvis."""
    rng, height = body.organ("bones").rng, body.torso.height
    size = float(height * rng.uniform(0.95, 1.1))
    _draw_spine(canvas, body, size, float(rng.uniform(0, 1)))
    phase = float(rng.uniform(0, 1))
    part = canvas.box([-INF, -INF, -8 * height], [INF, INF, INF])
    # ribs run around the chest, down towards the front; their ends rise towards the sternum
    if part is not None:
        x, y, z = canvas.coordinates(part)
        front, back, side = (
            canvas.row(values, part) for values in (body.front, body.back, body.side)
        )
        forward = (y - back) / (front - back)
        ring = (canvas.cavity[part] - 1) * (side / EXPONENT)  # approximately mm from the cavity
        run = torch.remainder((z + 0.75 * (y - back) + 0.5 * x.abs()) / (30 * height) + phase, 1)
        margin = height * (-8 + 118 * forward.clamp_min(0) ** 1.4)
        where = ((run - 0.5).abs() < 0.21) & (z > margin) & (x.abs() > 24)
        canvas.paint("rib", where & ((ring - 7).abs() < 4.5), over=SOFT, part=part)
        breast = ((y - front - 5).abs() < 5.5) & (x.abs() < 17) & (z > 104 * height)
        canvas.paint("rib", breast, over=SOFT, part=part)
    _draw_pelvis(canvas, body)


def _draw_spine(canvas: Canvas, body: Body, size: float, phase: float) -> None:
    """Paint vertebrae with arches and processes, discs and the spinal canal."""
    part = canvas.box(
        [-42 * size, -INF, -INF], [42 * size, float(body.spine.max()) + 24 * size, INF]
    )
    if part is None:
        return
    x, y, z = canvas.coordinates(part)
    middle, pitch = canvas.row(body.spine), 34.0 * size
    along = torch.remainder(z / pitch + phase, 1)  # 0 to 1 from disc to disc
    waist = 1 - 0.13 * torch.sin(torch.pi * along)
    behind = (middle - y) / (17 * size)
    level = ((x / (24 * size)) ** 2 + behind**2 * torch.where(behind > 0, 1.3, 1.0)) / waist**2
    is_disc = along < 0.22
    canvas.paint("disc", (level < 1) & is_disc, over=SOFT, part=part)
    canvas.paint("cortical bone", (level < 1.05) & ~is_disc, over=SOFT, part=part)
    inner = (level < 0.82) & (along > 0.27) & (along < 0.95)
    canvas.paint("spongy bone", inner, over=("cortical bone",), part=part)
    back = y - (middle - 26 * size)
    canal = (x / (10 * size)) ** 2 + (back / (8 * size)) ** 2
    arch = ((x / (15 * size)) ** 2 + (back / (13 * size)) ** 2 < 1) & (along > 0.3)
    transverse = (
        ((back + 4 * size).abs() < 4 * size)
        & (x.abs() < 38 * size)
        & (along > 0.45)
        & (along < 0.75)
    )
    spinous = (
        (x.abs() < 3.5 * size) & (back < 0) & (back > -36 * size) & (along > 0.4) & (along < 0.95)
    )
    canvas.paint("cortical bone", arch | transverse | spinous, over=SOFT, part=part)
    canvas.paint(
        "spinal canal", canal < 1, over=("cortical bone", "muscle", "visceral fat"), part=part
    )


def _draw_pelvis(canvas: Canvas, body: Body) -> None:
    """Paint sacrum, iliac wings and hip joints."""
    rng, height = body.organ("pelvis").rng, body.torso.height
    low = float(height * rng.uniform(-112, -100))  # iliac crests
    part = canvas.box([-INF, -INF, -INF], [INF, INF, low])
    if part is None:
        return
    x, y, z = canvas.coordinates(part)
    back = body.spine_at(low - 40) - 12
    over = (*SOFT, "cortical bone", "spongy bone", "disc")
    radii = np.array([50.0, 19, 52]) * height
    canvas.ellipsoid("pelvis", np.array([0, back - 2, low - 52]), radii, over=over)
    reach = 100 * body.across
    (x0, y0), (x1, y1) = (40.0, back - 6), (reach, back + 62)
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2
    share = (((x.abs() - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length).clamp(0, 1)
    bow = 12 * torch.sin(torch.pi * share)
    off = torch.sqrt(
        (x.abs() - x0 - share * (x1 - x0) - bow) ** 2 + (y - y0 - share * (y1 - y0)) ** 2
    )
    crest = low - 26 * (2 * share - 1) ** 2
    narrow = 1 - (crest - z).clamp(0, 110) / 260
    wing = (off < 6.5) & (z < crest) & (z > low - 105) & (share < 1.2 * narrow)
    canvas.paint("pelvis", wing, over=SOFT, part=part)
    for side in (-1, 1):
        joint = np.array([side * 0.8 * reach, back + 52, low - 128])
        canvas.ellipsoid("pelvis", joint, np.array([34.0, 38, 36]), rough=0.1, over=SOFT)
        canvas.ellipsoid("muscle", joint, np.full(3, 28.0), over=("pelvis",))
        canvas.ellipsoid("pelvis", joint, np.full(3, 25.0), over=("muscle",))


def draw_couch(canvas: Canvas, body: Body) -> None:
    """Paint a couch in most images: a mattress on a foam core in a shell, curved or flat."""
    rng = body.moment_rng("couch")
    if rng.random() < 0.15:
        return
    part = canvas.box([-INF, -INF, -INF], [INF, float(body.skin_back.max()) + 60, INF])
    if part is None:
        return
    x, y, z = canvas.coordinates(part)
    wide, deep, shell = (
        float(rng.uniform(200, 265)),
        float(rng.uniform(30, 70)),
        float(rng.uniform(3, 6)),
    )
    soft = float(rng.uniform(6, 26))
    top = float(np.min(body.skin_back)) - soft
    bend = 0.0 if rng.random() < 0.3 else float(rng.uniform(1 / 2200, 1 / 1000))
    surface = top + bend * x**2
    inside = (x.abs() < wide) & (y < surface) & (y > surface - deep * (1 - (x / wide) ** 4))
    core = (x.abs() < wide - shell) & (y < surface - shell)
    core &= y > surface - deep * (1 - (x / wide) ** 4) + shell
    everywhere = torch.ones_like(z, dtype=torch.bool)
    mattress = (x.abs() < wide - 10) & (y >= surface) & (y < surface + soft) & everywhere
    canvas.paint("mattress", mattress, over=("air",), part=part)
    canvas.paint("couch shell", inside & everywhere, over=("air",), part=part)
    canvas.paint("couch foam", core & everywhere, over=("couch shell",), part=part)
