"""What a run tells as it goes: plain JSON objects."""

from __future__ import annotations

import time
from typing import Any

from napari_shmoareg.io.summary import plain

Event = dict[str, Any]


def event(name: str, /, **more: Any) -> Event:
    """One event: its name, the time (seconds since 1970) and what it tells; NaN and infinity become None."""
    return {"event": name, "time": round(time.time(), 3), **plain(more)}


def phase(name: str, done: float, text: str) -> Event:
    """How far a part of the work is; `done` from 0 to 1."""
    return event("phase", phase=name, done=round(min(max(done, 0.0), 1.0), 4), text=text)
