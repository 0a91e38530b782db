"""The colours of experts and images, on paper and on screen."""

from __future__ import annotations

import colorsys

PAPER_COLOURS = ("#e03131", "#ffffff", "#2f5fd0")  # red, white, blue of Fig. 4
MORE_COLOURS = ("#2f9e44", "#f2c037", "#7048a8", "#0c8599", "#e8590c", "#868e96")
IMAGE_COLOURS = {"moving": "#f08c00", "fixed": "#2b8a5a"}


def expert_colours(count: int) -> list[str]:
    """Red, white and blue for three experts as in Fig. 4; further ones get colours of their own."""
    palette = [*PAPER_COLOURS, *MORE_COLOURS]
    return [palette[n % len(palette)] for n in range(count)]


def head_colours(count: int) -> list[str]:
    """As many colours as there are attention heads, no two alike; neighbours differ in lightness
    too.
    """
    rgb = (
        colorsys.hls_to_rgb(n / max(count, 1), 0.42 if n % 2 else 0.62, 0.62) for n in range(count)
    )
    return ["#" + "".join(f"{round(255 * part):02x}" for part in each) for each in rgb]
