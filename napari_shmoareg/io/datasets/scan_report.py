"""ScanReport: what the check-up found about one scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ScanReport:
    """One scan, as it lies on the disk and beside the others.

    Attributes
    ----------
    name, subject : str
    image : str
        The file.
    shape : tuple of 3 int
    spacing : tuple of 3 float
        mm.
    orientation : str
        Where the three axes of the file run to, such as "LIA".
    low, high : float
        Least and greatest value, in the file's units, within the window.
    labels : tuple of int, or None
        Label values without 0; None where there is no label map.
    dice : float or None
        Mean Dice of the labels with its partner's, after alignment, over labels in either.
    ncc : float or None
        Correlation with its partner after alignment, where their fields of view meet.
    partner : str or None
        With which scan it was compared: the reference, or the other one of its listed pair.
    skipped : str or None
        Why it is not used.
    """

    name: str
    subject: str
    image: str
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    low: float | None = None
    high: float | None = None
    labels: tuple[int, ...] | None = None
    dice: float | None = None
    ncc: float | None = None
    partner: str | None = None
    skipped: str | None = None

    @property
    def overlap(self) -> float | None:
        """The Dice where both scans have labels, otherwise the correlation; None for the reference."""
        return self.ncc if self.dice is None else self.dice

    @property
    def overlap_kind(self) -> str | None:
        """What `overlap` is: "dice" or "ncc"."""
        if self.overlap is None:
            return None
        return "ncc" if self.dice is None else "dice"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "subject": self.subject,
            "shape": None if self.shape is None else list(self.shape),
            "spacing": None if self.spacing is None else [round(s, 4) for s in self.spacing],
            "orientation": self.orientation,
            "low": self.low,
            "high": self.high,
            "labels": None if self.labels is None else list(self.labels),
            "overlap": self.overlap,
            "overlap_kind": self.overlap_kind,
            "partner": self.partner,
            "skipped": self.skipped,
        }

    def to_row(self) -> dict[str, object]:
        """One line of a table, with the name of each number."""
        return {
            "scan": self.name,
            "subject": self.subject,
            "image": self.image,
            "shape": "" if self.shape is None else "x".join(str(n) for n in self.shape),
            "spacing_mm": "" if self.spacing is None else "x".join(f"{s:.4g}" for s in self.spacing),
            "orientation": self.orientation or "",
            "low": "" if self.low is None else f"{self.low:g}",
            "high": "" if self.high is None else f"{self.high:g}",
            "labels": "" if self.labels is None else " ".join(str(v) for v in self.labels),
            "dice_after_alignment": "" if self.dice is None else f"{self.dice:.4f}",
            "ncc_after_alignment": "" if self.ncc is None else f"{self.ncc:.4f}",
            "compared_with": self.partner or "",
            "skipped": self.skipped or "",
        }
