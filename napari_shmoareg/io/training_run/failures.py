"""What ends a run by itself, in words."""

from __future__ import annotations

from napari_shmoareg.engine.batch import NotFiniteError
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.named_pairs import NamedPairs


def diverged(error: NotFiniteError, train: NamedPairs, step: int, folder: RunFolder) -> InputError:
    """A loss that is not finite, with the names of the scans, what is kept and what to do.

    Parameters
    ----------
    error : NotFiniteError
    train : NamedPairs
    step : int
        The last one whose loss and gradient were finite; its weights may be spoilt already.
    folder : RunFolder
    """
    names = "; ".join(train.told(index) for index in error.pairs)
    kept = f"The weights of step {step}, the one before, are kept in {folder.last}. " if step else ""
    start = f" --from {folder.last}, if they still register well," if step else ""
    if folder.best.is_file():
        kept += f"The best by validation are in {folder.best}. "
        start = f" --from {folder.best}"
    return InputError(
        f"{str(error).split('; the weights')[0]} ({names}). {kept}Going on would fail there again: begin another "
        f"run{start} with a lower --learning-rate, or look at these scans for extreme values and leave them out."
    )
