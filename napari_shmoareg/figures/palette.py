"""Colours of experts and images in figures and in the viewer."""

from __future__ import annotations

import colorsys

PAPER_COLOURS = ("#e03131", "#ffffff", "#2f5fd0")  # red, white, blue of Fig. 4
MORE_COLOURS = ("#2f9e44", "#f2c037", "#7048a8", "#0c8599", "#e8590c", "#868e96")
IMAGE_COLOURS = {"moving": "#f08c00", "fixed": "#2b8a5a"}
# of outlines over grey images; told apart by colour-blind eyes too
OUTLINE_COLOURS = {"moving": "#e69f00", "fixed": "#56b4e9", "warped": "#f25fb0"}


def expert_colours(count: int) -> list[str]:
    """Return a colour per expert: red, white and blue as in Fig. 4, then further colours."""
    palette = [*PAPER_COLOURS, *MORE_COLOURS]
    return [palette[n % len(palette)] for n in range(count)]


def head_colours(count: int) -> list[str]:
    """Return distinct colours for attention heads; neighbours also differ in lightness."""
    rgb = (
        colorsys.hls_to_rgb(n / max(count, 1), 0.42 if n % 2 else 0.62, 0.62) for n in range(count)
    )
    return ["#" + "".join(f"{round(255 * part):02x}" for part in each) for each in rgb]
