"""The preferences of this plugin in napari: *File > Preferences > Plugins*."""

from __future__ import annotations

from typing import Any

from napari.settings import get_plugin_settings

from napari_shmoareg.figures.palette import EXPERT_PALETTES

PLUGIN = "shmoareg"
PALETTE = next(iter(EXPERT_PALETTES))


def preferences(page: str) -> Any:
    """A page of the preferences; None if the plugin is not installed or disabled."""
    return getattr(get_plugin_settings().get(PLUGIN), page, None)


def expert_palette() -> str:
    """The palette of experts in maps and bars, one of `EXPERT_PALETTES`."""
    chosen = getattr(preferences("experts"), "palette", PALETTE)
    return chosen if chosen in EXPERT_PALETTES else PALETTE


def set_expert_palette(palette: str) -> None:
    """Keep the palette of experts, also for the next start of napari."""
    page = preferences("experts")
    if page is not None:
        page.palette = palette
