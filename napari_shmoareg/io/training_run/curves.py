"""The curves of a run for TensorBoard."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_shmoareg.geometry import InputError


class Curves:
    """Writes figures over steps; nothing where TensorBoard is not installed.

    Parameters
    ----------
    folder : Path or None
        None for no curves.
    after : int
        The last step of an earlier process that counts: later ones are written again.

    Warns
    -----
    UserWarning
        If TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None, *, after: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn(
                "TensorBoard is not installed, so its curves are not written; metrics.csv holds the same figures. "
                "Install it with: pip install tensorboard, or give --no-tensorboard.",
                stacklevel=2,
            )
            return
        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def add(self, group: str, values: Mapping[str, float | None], step: int) -> None:
        """Figures of one step, shown together under the name of their group; what is no finite number is left out.

        Raises
        ------
        InputError
            If the disk is full.
        """
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                if value is not None and math.isfinite(value):
                    self._writer.add_scalar(f"{group}/{name}", value, step)
        except OSError as error:
            raise InputError(f"The curves for TensorBoard could not be written: {error.strerror}.") from error

    def keep(self) -> None:
        """See that what was written can be read.

        Raises
        ------
        InputError
            If the disk is full.
        """
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except OSError as error:
            raise InputError(f"The curves for TensorBoard could not be written: {error.strerror}.") from error

    def close(self) -> None:
        """Let go of the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                warnings.warn(f"The last curves for TensorBoard are lost: {error.strerror}.", stacklevel=2)
