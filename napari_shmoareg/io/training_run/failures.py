"""What ends a run by itself, in words."""

from __future__ import annotations

from pathlib import Path

from napari_shmoareg.engine.batch import NotFiniteError
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.training_run.named_pairs import NamedPairs


def diverged(error: NotFiniteError, train: NamedPairs, step: int, last: Path) -> InputError:
    """A loss that is not finite, with the names of the scans, what is kept and what to do.

    Parameters
    ----------
    error : NotFiniteError
    train : NamedPairs
    step : int
        The last good one.
    last : Path
        Its weights.
    """
    names = "; ".join(train.told(index) for index in error.pairs)
    kept = f"The weights of step {step}, the last good one, are kept in {last}. " if step else ""
    start = " --from them" if step else ""
    return InputError(
        f"{str(error).split('; the weights')[0]} ({names}). {kept}Going on would fail there again: begin another "
        f"run{start} with a lower --learning-rate, or look at these scans for extreme values and leave them out."
    )
