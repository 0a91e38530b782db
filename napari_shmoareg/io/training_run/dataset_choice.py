"""A data set, and how it is to be read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_shmoareg.io.datasets import Dataset


@dataclass(frozen=True)
class DatasetChoice:
    """A data set, and how it is to be read; see `open_dataset`.

    Attributes
    ----------
    path : str
    images, labels, subject : str or None
        Patterns of files, and a regular expression that finds the subject in a name.
    kind : str
    window : (low, high) or None
    nan : float or None
    channel : int or None
    """

    path: str
    images: str | None = None
    labels: str | None = None
    subject: str | None = None
    kind: str = "auto"
    window: tuple[float, float] | None = None
    nan: float | None = None
    channel: int | None = None

    def open(self) -> Dataset:
        """Open it.

        Raises
        ------
        InputError
            If it is none.
        """
        from napari_shmoareg.io.datasets import open_dataset

        return open_dataset(self.path, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """All but the path."""
        return {name: value for name, value in asdict(self).items() if name != "path"}
