"""The check-up of a data set beside the window, scan by scan."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.engine.interruption import Interrupted
from napari_shmoareg.widgets.cancelling import Cancellable
from napari_shmoareg.widgets.fine_tune.background import Background
from napari_shmoareg.widgets.fine_tune.run_files import PARTS
from napari_shmoareg.widgets.register.warming import WarmUp

EVERY = 200  # ms between two looks


class Checking(QObject):
    """Checks one data set at a time.

    Parameters
    ----------
    parent : QObject
        With which it ends.

    Attributes
    ----------
    came : Signal(list, int)
        What was found of some scans, each as of the event "scan", and how many there are in all; once a look.
    done : Signal(dict, str)
        It is over: the part of each scan by its name, and problems in words.
    failed : Signal(str)
    """

    came = Signal(object, int)
    done = Signal(object, str)
    failed = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._work: Background[tuple[dict[str, str], str]] = Background()
        self._found: queue.SimpleQueue[tuple[dict[str, Any], int]] = queue.SimpleQueue()
        self._wanted = [Cancellable()]  # of the newest check-up
        weakref.finalize(self, _cancel, self._wanted)
        self._timer = QTimer(self)
        self._timer.setInterval(EVERY)
        self._timer.timeout.connect(self._look)

    @property
    def busy(self) -> bool:
        """Whether a check-up is under way."""
        return self._timer.isActive()

    def begin(
        self,
        dataset: Path,
        finding: Mapping[str, str],
        settings: Mapping[str, Any],
        weights: str,
        preset: str | None = None,
    ) -> None:
        """Check a data set, found and brought together as these options and settings say."""
        self._wanted[0].cancel()
        self._wanted[0] = wanted = Cancellable()
        self._found = queue.SimpleQueue()
        found = self._found
        self._work.begin(lambda: _check(dataset, finding, settings, (weights, preset), wanted, found))
        self._timer.start()

    def cancel(self) -> None:
        """End it at the next scan."""
        _cancel(self._wanted)

    def drop(self) -> None:
        """End it, and tell no more of it."""
        self.cancel()
        self._timer.stop()
        self._work.forget()

    def _look(self) -> None:
        outcome = self._work.fetch()  # before the last of what was found is taken
        found = [self._found.get() for _ in range(self._found.qsize())]
        if found:
            self.came.emit([scan for scan, _ in found], found[-1][1])
        if outcome is None:
            return
        self._timer.stop()
        if outcome.value is None:
            self.failed.emit(outcome.error)
        else:
            self.done.emit(*outcome.value)


def _cancel(wanted: list[Cancellable]) -> None:
    wanted[0].cancel()


def _check(
    place: Path,
    finding: Mapping[str, str],
    settings: Mapping[str, Any],
    start: tuple[str, str | None],
    wanted: Cancellable,
    found: queue.SimpleQueue[tuple[dict[str, Any], int]],
) -> tuple[dict[str, str], str]:
    """Parts by name, and problems, as a run would find them; the scans go into the queue as they come."""
    WarmUp().wait()
    from napari_shmoareg.io.datasets import Checkup, VolumeCache, open_dataset, split_dataset

    try:
        options: dict[str, Any] = dict(finding)
        if "window" in options:
            options["window"] = options["window"].split(",")
        dataset = open_dataset(place, **options)
        size = settings["size"] or _size_of(*start)
        labels = settings["overlap_weight"] > 0
        split = split_dataset(dataset, settings["split"], settings["split_seed"])
        brought = {"size": size, "affine": settings["affine"], "labels": labels, "training": split.train}
        checkup = Checkup(dataset, **brought, cache=VolumeCache())
        for report in checkup.run():
            wanted.check()
            found.put((report.to_dict(), len(dataset.scans)))
        wanted.check()
    except Interrupted:
        return {}, "The check-up was ended before it had seen all scans."
    problems = "\n".join(checkup.problems)
    usable = set(checkup.usable)
    return {name: part for part in PARTS for name in getattr(split, part) if name in usable}, problems


def _size_of(weights: str, preset: str | None) -> int:
    """Voxels that a run takes which begins with these weights, or from nothing with the network of a preset."""
    from napari_shmoareg.io.checkpoint import load_network
    from napari_shmoareg.io.weights import chosen_weights
    from napari_shmoareg.model import SHMoARegConfig

    if preset is not None:
        return SHMoARegConfig.preset(preset).learning_size
    return load_network(chosen_weights(weights)[0]).config.learning_size
