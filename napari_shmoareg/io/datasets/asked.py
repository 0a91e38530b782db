"""What is asked for beside the path of a data set."""

from __future__ import annotations

import re
from dataclasses import dataclass

from napari_shmoareg.io.datasets.scans import Window


@dataclass(frozen=True)
class Asked:
    """Patterns, the rule for subjects and how scans are read.

    Attributes
    ----------
    images, labels : str or None
        Patterns of file names.
    rule : pattern or None
        For the subject of a name.
    window : (low, high) or None
    nan, channel
        As for `read_image`.
    """

    images: str | None = None
    labels: str | None = None
    rule: re.Pattern[str] | None = None
    window: Window | None = None
    nan: float | None = None
    channel: int | None = None
