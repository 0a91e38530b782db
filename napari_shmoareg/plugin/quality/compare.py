"""Switches between comparisons: computes, shows and restores the viewer."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from napari.utils.notifications import show_error
from qtpy.QtCore import QObject, Signal

from napari_shmoareg.plugin.controls.tasks import Task, single_shot
from napari_shmoareg.plugin.quality.composites import (
    COMPUTED,
    SIDE_BY_SIDE,
    Comparison,
    Composite,
    Overlay,
    Prepared,
    SideBySide,
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
    """Shows one comparison at a time in a viewer."""

    working = Signal(bool)  # whether a comparison is being computed
    shown = Signal()  # another comparison is shown
    # a comparison ended because its layers were removed or it failed
    ended = Signal()
    dragged = Signal(float)  # position of a swipe's edge

    def __init__(self, viewer: Viewer, parent: QObject) -> None:
        super().__init__(parent)
        _COMPARERS.add(self)
        self._viewer = weakref.ref(viewer)
        self.current: Comparison | None = None
        self.amount = 0.5
        self._saved_state: ViewerState | None = None
        self._requested: tuple[int, str, str] | None = None
        self._changing = False
        self._cache: weakref.WeakKeyDictionary[Registration, dict[str, Volume]] = (
            weakref.WeakKeyDictionary()
        )
        self._check_timer = single_shot(self, 0, self._check)
        self._task = Task(parent, "a comparison")
        self._task.finished.connect(self._on_prepared)
        self._task.failed.connect(self._on_failed)
        self._task.cancelled.connect(lambda: self.working.emit(False))

    @property
    def viewer(self) -> Viewer | None:
        """The viewer; None if it was deleted."""
        return self._viewer()

    def follow_window(self) -> None:
        """Give a computed comparison the contrast limits of the fixed image."""
        if isinstance(self.current, Composite):
            self.current.follow_window()

    @property
    def busy(self) -> bool:
        """Whether a comparison is being computed."""
        return self._task.busy

    def request(self, number: int, mode: str, stage: str, amount: float) -> None:
        """Show a comparison once it is computed."""
        self._requested, self.amount = (number, mode, stage), amount
        self._prepare()

    def set_amount(self, amount: float) -> None:
        """Set the amount of the current or requested comparison."""
        self.amount = amount
        if self.current is not None and self._viewer() is not None:
            self.current.set_amount(amount)

    def stop(self) -> None:
        """End the comparison and restore the layers."""
        self._requested = None
        viewer = self._viewer()
        if viewer is not None:
            self._end(viewer)

    def layers_changed(self) -> None:
        """Check later whether the layers of the comparison still exist."""
        if self.current is not None and not self._changing:
            self._check_timer.start()

    def _prepare(self) -> None:
        viewer = self._viewer()
        if self._requested is None or self.busy or viewer is None:
            return
        number, mode, stage = self._requested
        registration = open_registrations(viewer)[number]
        present = {
            name
            for name in ("fixed", "after")
            if layer_of(viewer, registration, number, name) is not None
        }
        cache = self._cache.setdefault(registration, {})
        self._task.start(lambda _: prepare(registration, number, mode, stage, present, cache))
        self.working.emit(True)

    def _on_prepared(self, prepared: Prepared) -> None:
        """Show a computed comparison, unless another one was requested."""
        self.working.emit(False)
        viewer = self._viewer()
        if viewer is None or self._requested is None:
            return
        if self._requested[0] not in open_registrations(viewer):
            self.stop()
            self.ended.emit()
        elif (
            prepared.number,
            prepared.mode,
            prepared.stage,
        ) != self._requested or open_registrations(viewer)[
            prepared.number
        ] is not prepared.registration:
            self._prepare()
        else:
            self._show(viewer, prepared)

    def _on_failed(self, text: str) -> None:
        self.working.emit(False)
        if self._viewer() is not None and self._requested is not None:
            self.stop()
            self.ended.emit()
            show_error(f"The comparison failed. {text}")

    def _show(self, viewer: Viewer, prepared: Prepared) -> None:
        limits = _kept_limits(self.current, prepared)
        kind = (
            Composite
            if prepared.mode in COMPUTED
            else SideBySide
            if prepared.mode == SIDE_BY_SIDE
            else Overlay
        )
        with self._changes(viewer, at_once=kind is not Overlay or bool(prepared.extra)):
            self._end(viewer)
            self._saved_state = ViewerState(viewer)
            self.current = kind(viewer, prepared, self.amount)
        if isinstance(self.current, Composite):
            self.current.dragged.connect(self.dragged.emit)
            if limits is not None:
                self.current.layer.contrast_limits = limits
        self.shown.emit()

    def _end(self, viewer: Viewer) -> None:
        if self.current is None or self._saved_state is None:
            return
        with self._changes(viewer, at_once=False):
            current, saved_state, self.current, self._saved_state = (
                self.current,
                self._saved_state,
                None,
                None,
            )
            current.end()
            saved_state.restore(viewer)

    @contextmanager
    def _changes(self, viewer: Viewer, *, at_once: bool) -> Iterator[None]:
        """Change layers and grid; `at_once` rebuilds the canvas once instead of per change."""
        if self._changing:
            yield
            return
        shown = self.current
        at_once = at_once or (
            shown is not None and (bool(shown.added) or isinstance(shown, SideBySide))
        )
        self._changing = True
        try:
            with viewer.layers.batched_update() if at_once else nullcontext():
                yield
        finally:
            self._changing = False

    def _check(self) -> None:
        if self.current is not None and self._viewer() is not None and not self.current.is_complete:
            self.stop()
            self.ended.emit()


@contextmanager
def comparison_suspended(viewer: Viewer) -> Iterator[None]:
    """Suspend the comparisons of a viewer, so that layer changes persist after them."""
    interrupted = [
        comparer for comparer in _COMPARERS if comparer.current and comparer._viewer() is viewer
    ]
    for comparer in interrupted:
        comparer._end(viewer)
    yield
    for comparer in interrupted:
        comparer._prepare()


def _kept_limits(shown: Comparison | None, following: Prepared) -> tuple[float, float] | None:
    """Return the contrast limits to keep when only the stage changes."""
    if not isinstance(shown, Composite) or shown.prepared.mode != following.mode:
        return None
    if (
        shown.prepared.registration is not following.registration
        or shown.layer not in shown.viewer.layers
    ):
        return None
    low, high = shown.layer.contrast_limits
    return low, high
