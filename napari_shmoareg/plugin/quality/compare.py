"""Goes from one comparison to the next: computes beside the window, shows, and puts everything
back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error
from qtpy.QtCore import QObject, Signal

from napari_shmoareg.plugin.controls.tasks import Task, single_shot
from napari_shmoareg.plugin.quality.composites import (
    BESIDE,
    COMPUTED,
    Beside,
    Comparison,
    Computed,
    Mixed,
    Prepared,
    prepare,
)
from napari_shmoareg.plugin.registrations import open_registrations
from napari_shmoareg.plugin.showing import layer_of
from napari_shmoareg.plugin.viewer_state import ViewerState

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.geometry import Volume
    from napari_shmoareg.registration.register import Registration


_COMPARERS: weakref.WeakSet[Comparer] = weakref.WeakSet()


class Comparer(QObject):
    """Shows one comparison at a time in a viewer.

    Parameters
    ----------
    viewer : Viewer
    """

    working = Signal(bool)  # whether something is being computed
    shown = Signal()  # another comparison is shown now
    # a comparison ended by itself: its layers were removed, or it could not be made
    left = Signal()
    dragged = Signal(float)  # where the mouse took the edge of a swipe

    def __init__(self, viewer: Viewer, parent: QObject) -> None:
        super().__init__(parent)
        _COMPARERS.add(self)
        self._viewer = weakref.ref(viewer)
        self.current: Comparison | None = None
        self.amount = 0.5
        self._looks: ViewerState | None = None
        self._wanted: tuple[int, str, str] | None = None
        self._changing = False
        self._kept: weakref.WeakKeyDictionary[Registration, dict[str, Volume]] = (
            weakref.WeakKeyDictionary()
        )
        self._settled = single_shot(self, 0, self._check)
        self._task = Task(parent, "a comparison")
        self._task.finished.connect(self._prepared)
        self._task.failed.connect(self._fail)
        self._task.cancelled.connect(lambda: self.working.emit(False))

    @property
    def busy(self) -> bool:
        """Whether something is being computed."""
        return self._task.busy

    def want(self, number: int, mode: str, stage: str, amount: float) -> None:
        """Show a comparison as soon as it is computed; what is shown now stays until then."""
        self._wanted, self.amount = (number, mode, stage), amount
        self._prepare()

    def set_amount(self, amount: float) -> None:
        """Of what is shown, or will be."""
        self.amount = amount
        if self.current is not None and self._viewer() is not None:
            self.current.set_amount(amount)

    def leave(self) -> None:
        """Show the layers as they were."""
        self._wanted = None
        viewer = self._viewer()
        if viewer is not None:
            self._end(viewer)

    def layers_changed(self) -> None:
        """Look, once the layers have settled, whether what is shown is still there."""
        if self.current is not None and not self._changing:
            self._settled.start()

    def _prepare(self) -> None:
        viewer = self._viewer()
        if self._wanted is None or self.busy or viewer is None:
            return
        number, mode, stage = self._wanted
        registration = open_registrations(viewer)[number]
        present = {
            name
            for name in ("fixed", "after")
            if layer_of(viewer, registration, number, name) is not None
        }
        kept = self._kept.setdefault(registration, {})
        self._task.start(lambda _: prepare(registration, number, mode, stage, present, kept))
        self.working.emit(True)

    def _prepared(self, made: Prepared) -> None:
        """Show what was computed, unless something else is wanted by now."""
        self.working.emit(False)
        viewer = self._viewer()
        if viewer is None or self._wanted is None:
            return
        if self._wanted[0] not in open_registrations(viewer):
            self.leave()
            self.left.emit()
        elif (made.number, made.mode, made.stage) != self._wanted or open_registrations(viewer)[
            made.number
        ] is not made.registration:
            self._prepare()
        else:
            self._show(viewer, made)

    def _fail(self, text: str) -> None:
        self.working.emit(False)
        if self._viewer() is not None and self._wanted is not None:
            self.leave()
            self.left.emit()
            show_error(f"The comparison could not be made. {text}")

    def _show(self, viewer: Viewer, made: Prepared) -> None:
        limits = _limits_by_hand(self.current, made)
        kind = Computed if made.mode in COMPUTED else Beside if made.mode == BESIDE else Mixed
        with self._changes(viewer, at_once=kind is not Mixed or bool(made.extra)):
            self._end(viewer)
            self._looks = ViewerState(viewer)
            self.current = kind(viewer, made, self.amount)
        if isinstance(self.current, Computed):
            self.current.dragged.connect(self.dragged.emit)
            if limits is not None:
                self.current.layer.contrast_limits = limits
        self.shown.emit()

    def _end(self, viewer: Viewer) -> None:
        if self.current is None or self._looks is None:
            return
        with self._changes(viewer, at_once=False):
            current, looks, self.current, self._looks = self.current, self._looks, None, None
            current.end()
            looks.put_back(viewer)

    @contextmanager
    def _changes(self, viewer: Viewer, *, at_once: bool) -> Iterator[None]:
        """Change layers and cells, `at_once` with one new scene for all of them: napari makes one
        for each.
        """
        if self._changing:
            yield
            return
        shown = self.current
        at_once = at_once or (
            shown is not None and (bool(shown.added) or isinstance(shown, Beside))
        )
        self._changing = True
        try:
            with viewer.layers.batched_update() if at_once else nullcontext():
                yield
        finally:
            self._changing = False

    def _check(self) -> None:
        if self.current is not None and self._viewer() is not None and not self.current.whole:
            self.leave()
            self.left.emit()


@contextmanager
def uncompared(viewer: Viewer) -> Iterator[None]:
    """Interrupt what a viewer compares: what is done to its layers meanwhile stays when the
    comparison is left.
    """
    interrupted = [
        comparer for comparer in _COMPARERS if comparer.current and comparer._viewer() is viewer
    ]
    for comparer in interrupted:
        comparer._end(viewer)
    yield
    for comparer in interrupted:
        comparer._prepare()


def _limits_by_hand(shown: Comparison | None, following: Prepared) -> tuple[float, float] | None:
    """Dark and bright that stay when only the stage changes, so that before and after can be
    compared.
    """
    if not isinstance(shown, Computed) or shown.prepared.mode != following.mode:
        return None
    if (
        shown.prepared.registration is not following.registration
        or shown.layer not in shown.viewer.layers
    ):
        return None
    low, high = shown.layer.contrast_limits
    return low, high
