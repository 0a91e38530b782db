"""Figures as files that say what they show: PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import ending, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
ENDINGS = (".png", ".svg")


def write_figure(figure: Figure, path: str | Path, about: Mapping[str, str]) -> None:
    """Write a figure as PNG or SVG, by the ending of the name, with what it shows in its metadata; whole or not at all.

    Parameters
    ----------
    figure : Figure
    path : str or Path
        Ends in .png or .svg.
    about : mapping of str to str
        Title, Software, Weights, Pair, Settings and whatever else.  A PNG has a text chunk of each name.  An SVG has
        Dublin Core elements: Title is its title, Software its creator, and all others are lines "Name: text" of
        its description.

    Raises
    ------
    InputError
        If the ending is another one, or the place cannot be written to.
    """
    from matplotlib import rc_context

    kind = ending(path)
    if kind not in ENDINGS:
        raise InputError(f"Figures are written as {' or '.join(ENDINGS)}; got the name '{path}'.")
    metadata: dict[str, Any] = dict(about) if kind == ".png" else _dublin_core(about)
    # Ours: the text of an SVG stays text, so that it can be searched and set in a journal's own type; the same
    # figure is the same file, so neither a date nor ids drawn at random.
    with writing(path) as place, rc_context({"svg.fonttype": "none", "svg.hashsalt": "shmoareg"}):
        figure.savefig(place, format=kind[1:], dpi=DOTS_PER_INCH, metadata=metadata)


def _dublin_core(about: Mapping[str, str]) -> dict[str, Any]:
    told = "\n".join(f"{name}: {text}" for name, text in about.items() if name not in ("Title", "Software"))
    named = {"Title": about.get("Title"), "Creator": about.get("Software"), "Description": told or None}
    return {key: value for key, value in named.items() if value is not None} | {"Date": None}
