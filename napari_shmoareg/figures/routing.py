"""Figure of the routing controls: the fraction of the gain that each one keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from napari_shmoareg.experts.controls import KINDS
from napari_shmoareg.experts.routing_scores import (
    BEFORE,
    LEARNED,
    MEASURES,
    TITLES,
    ControlRow,
    Share,
)
from napari_shmoareg.figures.experts import add_caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PARTS = {
    "encoder": "Encoder: attention heads chosen per token (MoA)",
    "decoder": "Decoder: convolution chosen per voxel (SHMoE)",
}
COLOURS = {"encoder": "#0b7285", "decoder": "#d9480f"}
LEAST, MOST = -110.0, 135.0  # limits of the axis in percent


def controls_caption(rows: Sequence[ControlRow]) -> str:
    """Return the caption of `controls_figure`."""
    values = {row.key: row.value for row in rows}
    first = next(row for row in rows if row.control is not None)
    measure, passes = MEASURES[first.measure], first.control.passes if first.control else "all"
    over = f"{first.pairs} pairs of {first.images} images" if first.pairs > 1 else "one pair"
    interval = any(
        row.kept is not None and row.kept.low is not None for row in rows if row.control is not None
    )
    lines = (
        "Lines: 95 % bootstrap intervals over subjects."
        if interval
        else "No intervals: too few subjects."
    )
    used = dict.fromkeys(row.control.name for row in rows if row.control is not None)
    descriptions = "; ".join(f"{KINDS[name].title}: {KINDS[name].description}" for name in used)
    return (
        "Share of the gain that is kept when the choice of experts is changed in"
        f" {_passes(passes)}, over {over}. The gain is that of the network over the alignment: mean"
        f" {measure} {values[BEFORE]:.3f} before, {values[LEARNED]:.3f} as learned. 100 %: the"
        " change costs nothing, so the learned choice is not needed. 0 %: the whole gain is"
        f" lost; below 0 %, the result is worse than the alignment. {lines} On the right: the mean"
        f" {measure} minus that as learned. {descriptions[:1].upper() + descriptions[1:]}."
    )


def _passes(passes: str) -> str:
    return "all passes of the network" if passes == "all" else "the last pass of the network alone"


def controls_figure(
    rows: Sequence[ControlRow], caption: str = "", kernels: Sequence[int] = ()
) -> Figure:
    """Draw the share of the gain that each control keeps, with intervals, per part.

    Parameters
    ----------
    rows : sequence of ControlRow
        From `control_rows`.
    caption : str
        Text below the figure.
    kernels : sequence of int
        Kernel sizes of the decoder, for titles: `SHMoARegConfig.kernels`.

    Raises
    ------
    ValueError
        If no row is a control.
    """
    from matplotlib.figure import Figure

    parts = {
        part: [r for r in rows if r.control is not None and r.control.part == part]
        for part in PARTS
    }
    parts = {part: own for part, own in parts.items() if own}
    if not parts:
        raise ValueError("There is no control to draw.")
    heights = [len(own) + 1.6 for own in parts.values()]
    figure = Figure(figsize=(9, 0.3 * sum(heights) + 1.6), dpi=150, layout="constrained")
    measure = MEASURES[rows[0].measure]
    pieces = figure.subplots(len(parts), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (part, own) in zip(pieces, parts.items(), strict=True):
        _draw(axes, own, COLOURS[part], measure, kernels)
        axes.set_title(PARTS[part], fontsize=10, loc="left")
    pieces[-1].set_xlabel("share of the network's gain that is kept, %", fontsize=9)
    figure.suptitle("Does it matter which experts are chosen?", fontsize=11)
    add_caption(figure, caption)
    return figure


def _draw(
    axes: Axes, rows: Sequence[ControlRow], colour: str, measure: str, kernels: Sequence[int]
) -> None:
    axes.axvline(100, color="0.25", linewidth=1)
    axes.axvline(0, color="0.25", linewidth=1, linestyle="--")
    for position, row in enumerate(rows):
        assert row.control is not None
        if row.kept is None:
            axes.text(
                50,
                position,
                "the network gains nothing",
                fontsize=8,
                ha="center",
                va="center",
                color="0.4",
            )
        else:
            _point(axes, position, row.kept, colour)
        axes.text(
            1.01,
            position,
            _change(row.change),
            transform=axes.get_yaxis_transform(),
            fontsize=8,
            va="center",
        )
    axes.text(
        1.01,
        -1,
        f"change of {measure}",
        transform=axes.get_yaxis_transform(),
        fontsize=8,
        va="center",
    )
    for at, name in ((100, "as learned"), (0, "alignment alone")):
        axes.text(at, -1, name, fontsize=8, ha="center", va="center", backgroundcolor="white")
    axes.set_yticks(range(len(rows)), [title_of(row, kernels) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -1.6)
    axes.set_xlim(LEAST - 12, MOST)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(True, axis="x", color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def title_of(row: ControlRow, kernels: Sequence[int] = ()) -> str:
    """Return the title of a row, with kernels by size: "3x3x3 everywhere"."""
    control = row.control
    if control is None:
        return TITLES[row.key]
    if control.part == "decoder" and control.expert is not None and control.expert < len(kernels):
        size = str(kernels[control.expert])
        return control.title_with("\u00d7".join([size] * 3))
    return control.title


def _point(axes: Axes, position: int, kept: Share, colour: str) -> None:
    """Draw a share with its interval; a value beyond the axis is an arrow with its number."""
    at = 100 * kept.value
    if kept.low is not None and kept.high is not None:
        low, high = (min(max(100 * end, LEAST), MOST) for end in (kept.low, kept.high))
        axes.plot(
            [low, high], [position, position], color=colour, linewidth=1.4, solid_capstyle="butt"
        )
    if at < LEAST:
        axes.plot([LEAST - 6], [position], marker="<", color=colour, markersize=6)
        axes.text(LEAST, position - 0.12, f"{at:.0f} %", fontsize=8, va="bottom", color=colour)
    else:
        axes.plot([min(at, MOST)], [position], marker="o", color=colour, markersize=5)


def _change(change: Share) -> str:
    ends = "" if change.low is None else f"  [{change.low:+.3f}, {change.high:+.3f}]"
    return f"{change.value:+.3f}{ends}"
