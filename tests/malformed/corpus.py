"""What a malformed input is, what may come of it, and seeded damage to files that were whole."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Other draws, and more of them, to look for faults by hand; the test takes none of the two.
SEED, TIMES = (
    int(os.environ.get(name, default))
    for name, default in (("CORPUS_SEED", "0"), ("CORPUS_TIMES", "1"))
)


class Found(NamedTuple):
    """What was read: voxels, points or plain content, and voxel index to RAS mm where there is
    one.
    """

    values: Any
    affine: NDArray[np.float64] | None = None


class Refused(NamedTuple):
    """To be refused by an error that names the input and holds these words."""

    words: tuple[str, ...] = ()


class Warned(NamedTuple):
    """To be read as `found`, with a warning that holds these words."""

    found: Found
    words: tuple[str, ...] = ()


class Truth(NamedTuple):
    """May be refused or warned about; read without a word only as `parse` reads it.

    `parse` shares no code with the package.  None from it is "nothing to be read silently"; where
    it fails, on damage that a reader may overlook, only `whole` may be read, what the file held
    before."""

    parse: Callable[[Path], Found | None]
    whole: Found | None = None


Outcome = Found | Refused | Warned | Truth


class Malformed(NamedTuple):
    """One input.

    Attributes
    ----------
    kind, name : str
    door : str
        Which reader it is given to, a name in `reading.DOORS`.
    write : callable
        Writes it into a folder that exists, and gives what the reader is given.
    outcome : Found, Refused, Warned or Truth
    """

    kind: str
    name: str
    door: str
    write: Callable[[Path], Path | str]
    outcome: Outcome


def refused(*words: str) -> Refused:
    return Refused(words)


def written(name: str, content: bytes | str, **beside: bytes) -> Callable[[Path], Path]:
    """Writes one file, and others beside it."""

    def write(folder: Path) -> Path:
        for other, data in beside.items():
            (folder / other).write_bytes(data)
        raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
        (folder / name).write_bytes(raw)
        return folder / name

    return write


def put(raw: bytes, position: int, new: bytes) -> bytes:
    """The same bytes with others in one place."""
    return raw[:position] + new + raw[position + len(new) :]


def damaged(
    raw: bytes, seed: int, count: int, within: slice = slice(None)
) -> Iterator[tuple[str, bytes]]:
    """Copies of a file with one thing damaged each: bits, lengths, repeated and lost parts, huge
    numbers.
    """
    draw = random.Random(1000 * SEED + seed)
    places = range(len(raw))[within]
    for n in range(TIMES * count):
        at = draw.choice(places)
        size = draw.choice((1, 2, 4, 8, 40))
        kind = ("bit", "bit", "bit", "cut", "repeat", "lose", "ones", "zeros", "noise", "huge")[
            n % 10
        ]
        new = {
            "bit": lambda at=at: put(raw, at, bytes([raw[at] ^ 1 << draw.randrange(8)])),
            "cut": lambda at=at: raw[:at],
            "repeat": lambda at=at, size=size: raw[: at + size] + raw[at:],
            "lose": lambda at=at, size=size: raw[:at] + raw[at + size :],
            "ones": lambda at=at, size=size: put(raw, at, b"\xff" * size)[: len(raw)],
            "zeros": lambda at=at, size=size: put(raw, at, b"\0" * size)[: len(raw)],
            "noise": lambda at=at, size=size: put(raw, at, draw.randbytes(size))[: len(raw)],
            "huge": lambda at=at: put(raw, at, b"\xff\xff\xff\x7f")[: len(raw)],
        }[kind]()
        if new != raw:
            yield f"{kind} at {at}, {n}", new


_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0",
    "99999999999",
    "2147483648",
    "1,5",
    "0x10",
    "",
    "1e-320",
    "-0",
    "1.5",
    "9" * 400,
    "1_0",
    "\u0663",
    "1e5",
    "3d",
)


def misspelt(text: str, seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Copies of a text with one line lost, repeated, moved, or one word or number in it
    replaced.
    """
    draw = random.Random(1000 * SEED + seed)
    for n in range(TIMES * count):
        lines = text.split("\n")
        at = draw.randrange(len(lines))
        kind = ("number", "number", "number", "lose", "repeat", "move", "letter", "join")[n % 8]
        if kind == "number":
            spots = [
                (i, m) for i, line in enumerate(lines) for m in re.finditer(r"-?\d[\d.e]*", line)
            ]
            at, spot = draw.choice(spots)
            value = draw.choice(_NUMBERS)
            lines[at] = lines[at][: spot.start()] + value + lines[at][spot.end() :]
        elif kind == "lose":
            del lines[at]
        elif kind == "repeat":
            lines.insert(draw.randrange(len(lines)), lines[at])
        elif kind == "move":
            lines.insert(draw.randrange(len(lines)), lines.pop(at))
        elif kind == "letter" and lines[at]:
            spot = draw.randrange(len(lines[at]))
            lines[at] = lines[at][:spot] + draw.choice("x:=#,0 -\u00b5(\t") + lines[at][spot + 1 :]
        elif kind == "join" and at:
            lines[at - 1 : at + 1] = [lines[at - 1] + lines[at]]
        if (new := "\n".join(lines)) != text:
            yield f"{kind} in line {at + 1}, {n}", new


def alike(got: Found, wanted: Found) -> str:
    """How two readings differ; empty where they do not."""
    if not isinstance(wanted.values, np.ndarray):
        return (
            ""
            if got.values == wanted.values
            else f"{got.values!r:.200}, not {wanted.values!r:.200}"
        )
    values, truth = (np.asarray(found.values, np.float64) for found in (got, wanted))
    if values.shape != truth.shape:
        return f"shape {values.shape}, not {truth.shape}"
    finite = np.abs(truth[np.isfinite(truth)])
    near = 1e-6 * float(finite.max(initial=0))
    with np.errstate(all="ignore"):
        if not np.allclose(values, truth, rtol=1e-6, atol=near, equal_nan=True):
            at = tuple(
                np.argwhere(~np.isclose(values, truth, rtol=1e-6, atol=near, equal_nan=True))[0]
            )
            return f"value {values[at]} at {tuple(map(int, at))}, not {truth[at]}"
    if (got.affine is None) != (wanted.affine is None):
        return f"affine {got.affine}, not {wanted.affine}"
    if wanted.affine is not None and not np.allclose(
        got.affine, wanted.affine, rtol=1e-5, atol=1e-5
    ):
        return (
            f"affine {np.round(got.affine, 4).tolist()}, not {np.round(wanted.affine, 4).tolist()}"
        )
    return ""


def volume(shape: Sequence[int], dtype: Any, seed: int = 0) -> NDArray:
    """Voxels that are all different where the type allows."""
    low, high = (0, 250) if np.dtype(dtype) == np.uint8 else (-900, 2000)
    return np.random.default_rng(seed).integers(low, high, tuple(shape)).astype(dtype)
