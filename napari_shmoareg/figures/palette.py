"""Colours of experts and images in figures and in the viewer."""

from __future__ import annotations

import colorsys

# "distinct": told apart over grey images, at half opacity and by colour-blind eyes too;
# "paper": the red, white and blue of Fig. 4, whose white looks like bright tissue
EXPERT_PALETTES = {
    "distinct": ("#ffb000", "#80b2ff", "#800080"),
    "paper": ("#e03131", "#ffffff", "#2f5fd0"),
}
MORE_COLOURS = ("#2f9e44", "#f2c037", "#7048a8", "#0c8599", "#e8590c", "#868e96")
IMAGE_COLOURS = {"moving": "#f08c00", "fixed": "#2b8a5a"}
# of outlines over grey images; told apart by colour-blind eyes too
OUTLINE_COLOURS = {"moving": "#e69f00", "fixed": "#56b4e9", "warped": "#f25fb0"}


def expert_colours(count: int, palette: str = "distinct") -> list[str]:
    """Return a colour per expert: those of one of `EXPERT_PALETTES`, then further colours."""
    colours = [*EXPERT_PALETTES[palette], *MORE_COLOURS]
    return [colours[n % len(colours)] for n in range(count)]


def head_colours(count: int) -> list[str]:
    """Return distinct colours for attention heads; neighbours also differ in lightness."""
    rgb = (
        colorsys.hls_to_rgb(n / max(count, 1), 0.42 if n % 2 else 0.62, 0.62) for n in range(count)
    )
    return ["#" + "".join(f"{round(255 * part):02x}" for part in each) for each in rgb]
