"""The places in a run's folder, and how it begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io import partial
from napari_shmoareg.io.places import check_is_folder, check_new_folder
from napari_shmoareg.io.training_run.lock import RunLock
from napari_shmoareg.io.untrusted import user_path

if TYPE_CHECKING:
    from napari_shmoareg.io.training_run.plan import Plan

STATE = "training.safetensors"


class RunFolder:
    """Where everything of a run stands.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path).absolute()
        self.told = self.path / "run.json"
        self.split = self.path / "split.json"
        self.checkup = self.path / "checkup.csv"
        self.metrics = self.path / "metrics.csv"
        self.validation = self.path / "validation.csv"
        self.loads = self.path / "loads.csv"
        self.skipped = self.path / "skipped.csv"
        self.curves = self.path / "tensorboard"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.state = self.path / STATE
        self.preview = self.path / "preview"
        self.wish = self.path / "wish"
        self.lock = self.path / "lock"

    @property
    def weights(self) -> Path | None:
        """The weights to use: the best, where validation found some, else the last; None before there are any."""
        return next((path for path in (self.best, self.last) if path.is_file()), None)

    @contextmanager
    def begun(self, plan: Plan) -> Iterator[RunLock]:
        """Begin a run in a new or empty folder; the lock is held as long as this lasts.

        Raises
        ------
        InputError
            If the folder holds something, or cannot be made.
        """
        from napari_shmoareg.io.training_run.plan import write_plan

        self._check_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot make the folder {self.path}: {error.strerror}. Name another place.") from error
        with RunLock(self.lock) as lock:
            self._check_new()
            write_plan(self.told, plan)
            yield lock

    @contextmanager
    def gone_on(self, plan: Plan) -> Iterator[RunLock]:
        """Go on with the run that is here; the lock is held as long as this lasts.

        Raises
        ------
        InputError
            If another process works on it, or nothing can be written.
        """
        from napari_shmoareg.io.training_run.plan import read_plan, write_plan

        with RunLock(self.lock) as lock:
            told = read_plan(self.told)
            if told.to_dict() != replace(plan, dataset=told.dataset).to_dict():
                write_plan(self.told, replace(plan, dataset=told.dataset))  # a new place is told once it is looked at
            yield lock

    def _check_new(self) -> None:
        """Refuse a folder with anything but what a run killed at its very beginning left."""
        check_is_folder(self.path)
        if self.told.exists():
            raise InputError(
                f"{self.path} holds a run already. Give --resume to go on with it, or another --out to begin a new one."
            )
        if not self.path.is_dir():
            check_new_folder(self.path)
            return
        own = [self.lock, *(entry for entry in self.path.iterdir() if self._is_leftover(entry))]
        others = sorted(entry.name for entry in self.path.iterdir() if entry not in own)
        if others:
            raise InputError(
                f"The folder {self.path} is not empty ({len(others)} entries, such as '{others[0]}'), and holds no "
                "run. Nothing there is overwritten: name another folder, or empty this one."
            )
        check_new_folder(self.path / "new")

    def _is_leftover(self, entry: Path) -> bool:
        return any(partial.is_leftover(entry, name) for name in (self.told.name, self.lock.name))
