"""Settings that last from one start of napari to the next."""

from __future__ import annotations

from typing import Any

from napari.settings import get_plugin_settings
from napari.utils.notifications import show_warning

from napari_shmoareg.widgets.register.settings import Settings

PLUGIN, PAGE = "shmoareg", "registration"  # of the manifest's configurations


def recall() -> Settings:
    """What was chosen last; the defaults at the first start."""
    kept = _kept()
    return Settings() if kept is None else Settings.from_words({name: getattr(kept, name) for name in _names(kept)})


def remember(settings: Settings) -> None:
    """Keep for the next start.  Each change is written at once; one that cannot be is told."""
    kept = _kept()
    if kept is None:
        return
    try:
        for name, word in settings.to_words().items():
            if name in _names(kept) and getattr(kept, name) != word:
                setattr(kept, name, word)
    except OSError as error:
        show_warning(f"The settings could not be kept for the next start of napari: {error}.")


def _kept() -> Any:
    """The page of the preferences; None where this plugin is not installed or is switched off."""
    return getattr(get_plugin_settings().get(PLUGIN), PAGE, None)


def _names(kept: Any) -> set[str]:
    return set(type(kept).model_fields)
