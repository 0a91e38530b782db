"""``shmoareg fine-tune``: from a data set to better weights, in runs that survive."""

from napari_shmoareg.cli.fine_tune.command import fine_tune

__all__ = ["fine_tune"]
