"""One person: the measures of a body, and where the organs of a standard one lie in it.

Positions are mm in the directions right, front, up (RAS), 0 in the middle of the body at the height of the kidneys.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

# The cavity of the standard body reaches 125 mm to each side of its middle, and 80 mm to the front and the back.
WIDE, DEEP = 125.0, 80.0
TOP = 285.0  # a torso reaches so far up and down
LEVELS = (-280.0, -200, -130, -60, 0, 60, 120, 200, 280)  # heights of the shares below
WIDTH = (1.02, 1.04, 1.0, 0.97, 0.96, 0.98, 1.0, 1.0, 0.97)
DEPTH = (1.0, 1.0, 0.98, 0.97, 1.0, 1.0, 1.0, 0.98, 0.95)
FAT = (1.6, 1.5, 1.25, 1.1, 1.0, 0.9, 0.7, 0.6, 0.6)
CAVITY = (0.58, 0.66, 0.86, 0.98, 1.0, 1.0, 0.98, 0.95, 0.88)


@dataclass(frozen=True)
class Torso:
    """One person, and how an image found it.

    Parameters
    ----------
    width, depth : float
        Half of the body at the height of the kidneys, mm.
    fat : float
        Thickness below the skin there, mm.
    wall : float
        Thickness of the muscles at the sides, mm.
    height : float
        Of vertebrae and organs, as a share of the standard body's.
    seed : int
        Decides size, place and form of each organ.
    breath : float
        How much higher the diaphragm is than in the middle of a breath, mm.
    moment : int
        A seed too: of what is not the person's own, which is gas and fluid, the bladder, loops of the bowel, the couch.
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
    def drawn(cls, rng: np.random.Generator) -> Torso:
        """A random person."""
        fat = float(np.clip(np.exp(rng.normal(np.log(15), 0.55)), 4, 45))
        lean = float(np.clip(rng.normal(152, 9), 134, 174)) + 0.4 * (fat - 15)  # fat within grows with that without
        width, depth = lean + 0.85 * fat, lean * float(rng.uniform(0.64, 0.74)) + 0.95 * fat
        wall, height = float(rng.uniform(11, 19)), float(rng.uniform(0.92, 1.1))
        return cls(width, depth, fat, wall, height, int(rng.integers(2**31))).again(rng)

    def again(self, rng: np.random.Generator) -> Torso:
        """The same person at another time: another breath, other contents."""
        return replace(self, breath=float(rng.uniform(-18, 18)), moment=int(rng.integers(2**31)))


class Body:
    """Measures of a torso along the body's axis.

    Parameters
    ----------
    torso : Torso
    z : (Z,) array
        Heights at which the measures are wanted, mm.

    Attributes
    ----------
    width, depth : (Z,) array
        Half-axes of the skin.
    skin_back, muscle_side, muscle_back, muscle_front, side, back, front : (Z,) array
        Where the skin, the muscles and the cavity end.
    spine : (Z,) array
        The middle of the vertebral bodies, towards the front.
    across, through, middle : float
        Size of the cavity at the height of the kidneys, in that of the standard one, and its middle towards the front.
    """

    def __init__(self, torso: Torso, z: NDArray[np.float64]) -> None:
        self.torso, self.z = torso, z
        rng = np.random.default_rng([torso.seed, 1])
        wobble = 1 + rng.normal(0, 0.02, (4, len(LEVELS)))
        shares = np.array([WIDTH, DEPTH, FAT, CAVITY]) * wobble
        back, front, side = rng.uniform(0.7, 1.1), rng.uniform(0.8, 1.3), rng.uniform(0.7, 1.0)
        self._bend, self._phase = rng.uniform(3, 9), rng.uniform(-0.6, 0.6)
        self._shares, self._fat = shares, (back, front, side)
        here = self._measures(np.zeros(1))
        self.across = float(here["side"][0]) / WIDE
        self.through = float(here["front"][0] - here["back"][0]) / (2 * DEEP)
        self.middle = float(here["front"][0] + here["back"][0]) / 2
        measures = self._measures(z)
        self.width, self.depth, self.spine = measures["width"], measures["depth"], measures["spine"]
        self.skin_back, self.muscle_side = measures["skin_back"], measures["muscle_side"]
        self.muscle_back, self.muscle_front = measures["muscle_back"], measures["muscle_front"]
        self.side, self.back, self.front = measures["side"], measures["back"], measures["front"]

    def _measures(self, z: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        t, (back, front, side) = self.torso, self._fat
        width, depth, fat, cavity = (np.interp(z, np.array(LEVELS) * t.height, share) for share in self._shares)
        width, depth, fat = t.width * width, t.depth * depth, t.fat * fat
        found = {"width": width, "depth": depth, "skin_back": -0.93 * depth, "muscle_side": width - side * fat}
        found["muscle_back"] = found["skin_back"] + np.minimum(back * fat, 0.35 * depth)
        found["muscle_front"] = depth - np.minimum(front * fat, 0.45 * depth)
        found["side"] = (found["muscle_side"] - t.wall) * cavity
        found["back"] = found["muscle_back"] + 0.3 * t.depth * (2 - cavity)
        found["front"] = found["muscle_front"] - 0.5 * t.wall * (3 - 2 * cavity)
        found["spine"] = found["back"] + 14 + self._bend * np.sin(z / 105 + self._phase)
        return found

    def spine_at(self, z: float) -> float:
        """Where the middle of the vertebral body is at a height, towards the front."""
        return float(self._measures(np.array([z]))["spine"][0])

    def organ(self, name: str) -> Organ:
        """What places an organ: always the same for one person, whatever else is drawn."""
        return Organ(self, np.random.default_rng([self.torso.seed, zlib.crc32(name.encode())]))

    def now(self, name: str) -> np.random.Generator:
        """Random numbers for what is not the person's own."""
        return np.random.default_rng([self.torso.moment, zlib.crc32(name.encode())])


@dataclass(frozen=True)
class Organ:
    """Places an organ of the standard body in another one.

    Attributes
    ----------
    body : Body
    rng : numpy.random.Generator
    """

    body: Body
    rng: np.random.Generator

    def at(self, x: float, y: float, z: float, *, breath: float = 0.0, spread: float = 6.0) -> NDArray[np.float64]:
        """Where a standard position is in this person.

        Parameters
        ----------
        x, y, z : float
            mm; y from the middle of the cavity.
        breath : float
            Share of the diaphragm's motion that it follows.
        spread : float
            Standard deviation over people, mm.
        """
        body = self.body
        place = np.array([x * body.across, body.middle + y * body.through, z * body.torso.height])
        return place + self.rng.normal(0, spread, 3) + [0.0, 0.0, breath * body.torso.breath]

    def size(self, spread: float = 0.1) -> float:
        """A factor for its radii: the body's size, and a standard deviation of the logarithm over people."""
        body = self.body
        usual = (body.across * body.through * body.torso.height) ** 0.25  # organs grow less than what holds them
        return float(usual * np.exp(spread * np.clip(self.rng.standard_normal(), -2, 2)))

    def line(
        self, points: Sequence[Sequence[float]], *, breath: float = 0.0, spread: float = 4.0
    ) -> NDArray[np.float64]:
        """(n, 4): a tube through standard positions (x, y, z, radius)."""
        grown = self.size()
        return np.array([[*self.at(*point[:3], breath=breath, spread=spread), point[3] * grown] for point in points])
