"""Vessels and organs of a torso, in painting order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.training.torso.anatomy import TOP, Body
from napari_shmoareg.training.torso.canvas import Canvas, Slices

FAT = ("visceral fat",)
PSOAS = ("visceral fat", "muscle", "left psoas", "right psoas")
CHEST = ("visceral fat", "right lung", "left lung", "lung vessels", "oesophagus")


def draw_vessels(canvas: Canvas, body: Body) -> None:
    """Paint psoas muscles, aorta, vena cava and their branches."""
    for side, name in ((1, "right psoas"), (-1, "left psoas")):
        organ = body.organ(name)
        heights, aside, radii = (
            (0.0, -60, -110, -170, -235),
            (30, 38, 46, 62, 76),
            (9, 19, 23, 20, 14),
        )
        factor = organ.size(0.12)
        line = [
            [side * a * body.across, body.spine_at(h) + forward, h, r * factor]
            for h, a, r, forward in zip(heights, aside, radii, (-2, -2, 2, 18, 38), strict=True)
        ]
        canvas.tube(name, np.array(line), over=("visceral fat", "muscle"))
    front = 17 * body.torso.height + 11
    split = -88 * body.torso.height
    organ = body.organ("aorta")
    wide = organ.size(0.12)
    sway = organ.rng.normal(0, 4, 5)
    trunk = [
        [-10 + s, body.spine_at(h) + front, h, 10.5 * wide * g]
        for h, g, s in zip(
            (TOP, 160.0, 70.0, 0.0, split), (1.15, 1.1, 1.0, 0.9, 0.8), sway, strict=True
        )
    ]
    canvas.tube("aorta", np.array(trunk), over=(*CHEST, "heart"))
    organ = body.organ("vena cava")
    wide = organ.size(0.15)
    cava = [
        [22 + s, body.spine_at(h) + front + f, h + 0.4 * body.torso.breath * (h > 0), 11 * wide]
        for h, f, s in zip(
            (122.0, 85.0, 40.0, 0.0, split - 6),
            (22, 8, 3, 0, 0),
            organ.rng.normal(0, 4, 5),
            strict=True,
        )
    ]
    canvas.tube("vena cava", np.array(cava), over=CHEST)
    for side in (-1, 1):  # to the legs
        for name, start, radius in (("arteries", trunk[-1], 6.0), ("vena cava", cava[-1], 7.5)):
            bends = ((34, -2, -50), (62, 22, -105), (82, 50, -150))
            leg = [
                [side * a * body.across, start[1] + forward, split + down, radius]
                for a, forward, down in bends
            ]
            canvas.tube(name, np.array([[*start[:3], radius], *leg]), over=PSOAS)


def draw_solid_organs(canvas: Canvas, body: Body, floor: Tensor) -> None:
    """Paint kidneys, liver, spleen, pancreas and gallbladder.

    Parameters
    ----------
    canvas : Canvas
    body : Body
    floor : Tensor (X, Y, 1)
        Height of the diaphragm.
    """
    below = _below(canvas, floor)
    for side, name, height in ((1, "right", -10.0), (-1, "left", 6.0)):
        _draw_kidney(canvas, body, side, name, height)
    liver = body.organ("liver")
    factor, left = liver.size(0.1), float(np.exp(liver.rng.normal(0, 0.25)))
    parts = [
        (liver.at(66, 2, 46, breath=1), np.array([64, 70, 78]) * factor, (0.0, 0.15, 0.0)),
        (liver.at(86, -6, 4, breath=1), np.array([32, 44, 50]) * factor, (0.0, 0.0, 0.0)),
        (liver.at(2, 34, 60, breath=1), np.array([62 * left, 34, 34]) * factor, (0.0, 0.25, 0.0)),
    ]
    canvas.blob("liver", parts, rough=0.09, over=FAT, within=below)
    _draw_liver_vessels(canvas, body, parts[0][0])
    spleen = body.organ("spleen")
    factor = spleen.size(0.16)
    centre = spleen.at(-90, -26, 46, breath=1)
    hollow, radii = centre + np.array([40.0, 22, -4]), np.array([33.0, 48, 56]) * factor

    def outside(part: Slices) -> Tensor:
        off = [
            (axis - float(c)) / float(r)
            for axis, c, r in zip(canvas.coordinates(part), hollow, radii, strict=True)
        ]
        return (off[0] ** 2 + off[1] ** 2 + off[2] ** 2 > 1) & below(part)

    radii_spleen = np.array([34, 48, 57]) * factor
    canvas.ellipsoid(
        "spleen", centre, radii_spleen, turn=(0.3, 0.0, 0.35), rough=0.08, over=FAT, within=outside
    )
    gland = body.organ("pancreas")
    points = (
        (36, 4, -16, 16),
        (24, 8, -4, 14),
        (2, 4, 12, 11),
        (-30, -6, 22, 12),
        (-68, -16, 36, 11),
    )
    pancreas = gland.line(points, breath=0.4, spread=5)
    canvas.tube("pancreas", pancreas, over=FAT, folds=0.12)
    splenic = pancreas[1:].copy()
    splenic[:, 1] -= pancreas[1:, 3] + 1
    splenic[:, 3] = 4.2
    portal = body.organ("portal vein")
    gate = portal.line(
        ((10, 2, -60, 6), (8, -2, 0, 6.5), (26, 2, 30, 7), (50, 4, 44, 6)), breath=0.7
    )
    canvas.tube("portal vein", gate, over=(*FAT, "liver", "pancreas"))
    canvas.tube("portal vein", splenic, over=FAT)
    bile = body.organ("gallbladder")
    if bile.rng.random() < 0.85:
        radii = np.array([13, 14, 27]) * bile.size(0.22)
        canvas.ellipsoid(
            "gallbladder",
            bile.at(54, 40, -4, breath=0.9),
            radii,
            turn=(0.5, 0.2, 0.0),
            over=(*FAT, "liver"),
        )
    gut = body.organ("mesenteric artery")
    canvas.tube(
        "arteries",
        gut.line(((-8, -24, 16, 4), (-4, -4, -10, 4), (4, 12, -60, 3.5), (30, 22, -100, 3))),
        over=FAT,
    )


def _draw_kidney(canvas: Canvas, body: Body, side: int, name: str, height: float) -> None:
    """Paint cortex, pyramids, renal sinus with fat, and the vein."""
    organ, mirrored = body.organ(f"{name} kidney"), float(side)
    factor = organ.size(0.08)
    centre = organ.at(side * 64, -40, height, breath=0.55, spread=7)
    turn = (-0.2, 0.16 * mirrored, 0.5 * mirrored)
    radii = np.array([29.0, 28, 55]) * factor
    cortex = f"{name} renal cortex"
    canvas.ellipsoid(cortex, centre, radii, turn=turn, rough=0.05, over=FAT)
    inside = f"{name} renal medulla"
    pyramids = _beads(canvas, centre, factor)
    canvas.ellipsoid(
        inside, centre, radii * [0.72, 0.72, 0.8], turn=turn, over=(cortex,), within=pyramids
    )
    hilum = centre + np.array([-side * 14.0, 7, 0]) * factor
    canvas.ellipsoid(
        "visceral fat", hilum, np.array([15.0, 12, 24]) * factor, turn=turn, over=(cortex, inside)
    )
    canvas.ellipsoid("renal pelvis", hilum, np.array([7.0, 6, 11]) * factor, turn=turn, over=FAT)
    middle = np.array([22.0 if side > 0 else -2.0, body.spine_at(height) + 32, height + 6])
    vein = np.array(
        [[*hilum, 4.5], [*(0.5 * hilum + 0.5 * middle + [0, 4, 2]), 4.5], [*middle, 4.5]]
    )
    canvas.tube("vena cava", vein, over=FAT)


def _beads(
    canvas: Canvas, centre: NDArray[np.float64], factor: float
) -> Callable[[Slices], Tensor]:
    """Mask of the pyramids of a kidney, every 15 mm along it."""

    def inside(part: Slices) -> Tensor:
        x, y, z = canvas.coordinates(part)
        wave = torch.sin((z - float(centre[2])) * (6.28 / (15 * factor))) + 0.3 * torch.sin(
            (y - float(centre[1])) * 0.4
        )
        return wave + 0 * x > -0.35

    return inside


def _draw_liver_vessels(canvas: Canvas, body: Body, middle: NDArray[np.float64]) -> None:
    """Paint branches of the portal vein from the hilum, and of the hepatic veins from the vena
    cava.
    """
    organ = body.organ("liver vessels")
    up = body.torso.breath
    gate, vein = organ.at(48, 4, 42, breath=1), np.array([24.0, body.spine_at(88) + 34, 92 + up])
    for start, count, spread in ((gate, 5, (46, 40, 34)), (vein, 3, (44, 36, 18))):
        for _ in range(count):
            end = middle + organ.rng.uniform(-1, 1, 3) * spread
            bend = 0.5 * (start + end) + organ.rng.normal(0, 7, 3)
            branch = [[*start, 5.0], [*bend, 3.6], [*end, 2.0]]
            canvas.tube("liver vessels", np.array(branch), over=("liver",))


def _below(canvas: Canvas, floor: Tensor) -> Callable[[Slices], Tensor]:
    """Mask of voxels below the diaphragm and away from the wall."""

    def below(part: Slices) -> Tensor:
        _, _, z = canvas.coordinates(part)
        return (z < floor[part[0], part[1]] - 2.5) & (canvas.cavity[part] < 0.97)

    return below


def draw_hollow_organs(canvas: Canvas, body: Body) -> None:
    """Paint stomach, colon, small bowel and bladder; gas is in front, because people lie on their
    backs.
    """
    rng, organ = body.moment_rng("stomach"), body.organ("stomach")
    filled = float(rng.uniform(0.7, 1.15))
    points = (
        (-64, -14, 86, 30),
        (-62, 8, 58, 34),
        (-48, 36, 26, 28),
        (-12, 52, 6, 21),
        (26, 42, 6, 14),
    )
    stomach = organ.line([(x, y, z, r * filled) for x, y, z, r in points], breath=0.8, spread=5)
    level = float(np.quantile(stomach[:, 1], rng.uniform(0.3, 0.9))) + float(rng.uniform(-5, 25))
    inner = {"wall": 4.5, "content": "stomach fluid", "gas": "stomach gas", "fluid_level": level}
    canvas.tube("stomach wall", stomach, over=FAT, **inner)  # type: ignore[arg-type]
    end = stomach[-1]
    duodenum = body.organ("duodenum").line(
        ((50, 12, 0, 12), (50, 2, -32, 12), (18, -18, -46, 11), (-22, -8, -36, 11))
    )
    canvas.tube(
        "bowel wall",
        np.array([[*end[:3], 12], *duodenum]),
        over=FAT,
        wall=3,
        content="bowel fluid",
        folds=0.08,
    )
    _draw_colon(canvas, body)
    bladder = body.organ("bladder")
    radii = (
        np.array([38.0, 30, 30])
        * bladder.size()
        * float(body.moment_rng("bladder").uniform(0.5, 1.25))
    )
    canvas.ellipsoid(
        "bladder", bladder.at(0, 22, -198), radii, rough=0.05, over=("visceral fat", "muscle")
    )
    _draw_small_bowel(canvas, body)


def _draw_colon(canvas: Canvas, body: Body) -> None:
    """Paint the colon, from the right side to the rectum, partly collapsed, partly full of gas."""
    rng, organ = body.moment_rng("colon"), body.organ("colon")
    sag = float(organ.rng.uniform(-30, 15))
    sections = (
        ((86, 10, -124, 27), (94, -8, -90, 25), (98, -22, -52, 22), (92, -8, -22, 21)),
        (
            (90, 4, -20, 19),
            (60, 50, -34 + sag, 20),
            (4, 62, -48 + sag, 20),
            (-54, 56, -30 + sag, 19),
            (-94, 0, 34, 18),
        ),
        ((-96, -6, 32, 17), (-104, -32, -20, 15), (-102, -30, -74, 14), (-92, -16, -114, 15)),
        (
            (-90, -10, -118, 14),
            (-52, 6, -142, 15),
            (-10, 16, -152, 15),
            (6, -30, -168, 15),
            (0, -52, -214, 18),
        ),
    )
    for points in sections:
        filled = float(rng.uniform(0.65, 1.1))
        line = organ.line(
            [(*point[:3], point[3] * filled) for point in points], breath=0.2, spread=6
        )
        level = float(np.quantile(line[:, 1], rng.uniform(0, 1))) + float(rng.uniform(-20, 25))
        content = {"content": "colon content", "gas": "bowel gas", "fluid_level": level}
        canvas.tube("colon wall", line, over=FAT, wall=2.6, folds=0.16, **content)  # type: ignore[arg-type]


def _draw_small_bowel(canvas: Canvas, body: Body) -> None:
    """Paint a long loop that fills the rest of the central abdomen."""
    rng = body.moment_rng("small bowel")
    point = np.array([-20.0, 10, -40])
    heading = rng.normal(0, 1, 3)
    line = []
    low, high = np.array([-80.0, -20, -165]), np.array([80.0, 66, -20])
    for _ in range(150):
        heading = 0.75 * heading + rng.normal(0, 0.8, 3)
        point = point + 24 * heading / max(float(np.linalg.norm(heading)), 1e-6)
        beyond = (point < low) | (point > high)
        heading = np.where(beyond, -heading, heading)
        point = point.clip(low, high)
        line.append([*point, float(rng.uniform(10, 15))])
    organ = body.organ("small bowel")
    factor = organ.size() * float(np.clip(1.3 - 0.015 * body.torso.fat, 0.9, 1.2))
    loop = np.array([[*organ.at(x, y, z, breath=0.2, spread=0), r * factor] for x, y, z, r in line])
    level = float(np.quantile(loop[:, 1], 0.92))
    content = {"content": "bowel fluid", "gas": "bowel gas", "fluid_level": level}
    canvas.tube("bowel wall", loop, over=FAT, wall=3.0, folds=0.1, **content)  # type: ignore[arg-type]
