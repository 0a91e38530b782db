"""Alarms of collapsed routing as notifications."""

from __future__ import annotations

from collections.abc import Mapping

from napari.utils.notifications import show_warning

from napari_shmoareg.widgets.fine_tune.known import Alarm

NAMED = 3  # places in one notification


class Alarming:
    """Tells of each place once: in one notification what came together, and nothing that is over."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, alarms: Mapping[str, Alarm]) -> int:
        """Tell of new alarms, by place; returns how many are not over."""
        now = [alarm for alarm in alarms.values() if alarm.over is None]
        new = [alarm for alarm in now if alarm.place not in self._told]
        self._told |= {alarm.place for alarm in new}
        if len(new) == 1:
            show_warning(f"Step {new[0].step}: {new[0].text}")
        elif new:
            places = ", ".join(alarm.place for alarm in new[:NAMED]) + (" and others" if len(new) > NAMED else "")
            show_warning(
                f"Step {max(alarm.step for alarm in new)}: the routing has collapsed at {len(new)} places ({places}). "
                "The tab Loads says what to do."
            )
        return len(now)
