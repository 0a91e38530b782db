"""The attention of a token as a layer, computed by running the encoder again."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from napari.utils.notifications import show_error
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_shmoareg.errors import InputError
from napari_shmoareg.plugin.controls.forms import arranged, fill, weakly, wrapped
from napari_shmoareg.plugin.controls.legend import Ramp
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, Task, replay_of
from napari_shmoareg.plugin.experts.pins import link_metadata, linked_layer
from napari_shmoareg.plugin.placement import KEY

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image

    from napari_shmoareg.experts.attention import AttentionProbe, HeadAttention
    from napari_shmoareg.experts.location import CellReading
    from napari_shmoareg.experts.maps import GateValues
    from napari_shmoareg.registration.register import Registration


ROLE = "attention"
OTHER_NETWORK = (
    "The network that was run again chose the same heads as the registration for only {matching} of"
    " {compared} tokens: these are other weights of that name, or another version. The attention"
    " shown is not that of this result."
)
COMPARED = 12  # tokens of each gate whose choices are compared with the registration


class ProbeResult(NamedTuple):
    """A probe, and how well it reproduces the registration.

    Attributes
    ----------
    probe : AttentionProbe
    matching, compared : int
        Tokens that chose the same heads as in the registration, and tokens compared.
    """

    probe: AttentionProbe
    matching: int
    compared: int


def run_probe(
    registration: Registration, report: Report, weights: str | Path | None = None
) -> ProbeResult:
    """Run the encoder again and compare its choices with the registration; takes seconds, in a
    worker thread.

    Raises
    ------
    InputError, TooLargeError, Interrupted
        As for `replay_of`.
    """
    from napari_shmoareg.experts.attention import AttentionProbe
    from napari_shmoareg.experts.maps import token_loads
    from napari_shmoareg.registration.progress import interruptible

    replay = replay_of(registration, report, weights)
    report("running the encoder", 0.6)
    with interruptible(replay.network, report.check):
        probe = AttentionProbe.of(replay)
    report("comparing with the registration", 0.9)
    matching = compared = 0
    for load in token_loads(registration):
        report.check()
        for cell in _spread(load):
            chosen = {found.head for found in probe.at(load.gate, cell)}
            matching += chosen == set(np.flatnonzero(load.values[cell]).tolist())
            compared += 1
    return ProbeResult(probe, matching, compared)


def show_attention(
    viewer: Viewer, number: int, registration: Registration, found: HeadAttention
) -> Image:
    """Show the attention of a head in the layer ``#1 attention``, which is added if missing.

    It is on the tokens' own grid, never resampled (except for the straight copy of an oblique
    grid), from 0 to the largest value.  The name does not change: a new name would make every panel
    refresh."""
    from napari_shmoareg.plugin.layers import FINER, head_colours
    from napari_shmoareg.plugin.placement import layer_options
    from napari_shmoareg.plugin.showing import refill, uncover

    data, options = layer_options(found.volume, finer=FINER, nearest=True, head=found.head)
    options["metadata"][KEY] |= link_metadata(registration, ROLE)[KEY]
    top = max(float(found.volume.values.max(initial=0.0)), 1e-6)
    options |= {
        "name": f"#{number} attention",
        "colormap": head_colours(),
        "contrast_limits": (0.0, top),
    }
    layer = linked_layer(viewer, registration, ROLE)
    if layer is None:
        from napari.layers import Image

        more = {"rendering": "translucent", "interpolation2d": "nearest", "opacity": 0.8}
        active = viewer.layers.selection.active
        layer = viewer.add_layer(Image(data, **options, **more))
        viewer.layers.selection.active = active
    elif layer.data.shape == data.shape and np.allclose(
        (layer.scale, layer.translate), _geometry(options)
    ):
        layer.metadata = options["metadata"]
        layer.data = data  # any further change would redraw the canvas
        layer.contrast_limits_range = layer.contrast_limits = options["contrast_limits"]
    else:
        refill(layer, data, options)
    uncover(viewer, layer)
    return layer  # type: ignore[return-value]


def _geometry(options: dict[str, Any]) -> tuple[Any, Any]:
    return options["scale"], options["translate"]


def drop_attention(viewer: Viewer, registration: Registration) -> None:
    """Remove the layer."""
    layer = linked_layer(viewer, registration, ROLE)
    if layer is not None:
        viewer.layers.remove(layer)


def mismatch_warning(probed: ProbeResult) -> str:
    """A warning if the network did not choose the same heads as the registration, or ""."""
    if probed.matching == probed.compared:
        return ""
    return OTHER_NETWORK.format(matching=probed.matching, compared=probed.compared)


def describe(cell: CellReading, found: HeadAttention, heads: list[HeadAttention]) -> str:
    """Describe the attention of a token, and how its heads differ from the registration's."""
    values, window = found.volume.values, int(found.window.sum())
    total, own = float(values.sum()), float(values[cell.cell])
    text = (
        f"Attention of token {cell.cell}, head {found.head}, to the {window} tokens of its window:"
        f" the values sum to {total:.3f}; uniform attention would be {1 / max(window, 1):.3g} each;"
        f" the attention to itself is {own:.3g}."
    )
    if {one.head for one in heads} != set(cell.experts):
        text += (
            " In the registration this token chose the heads"
            f" {', '.join(map(str, sorted(cell.experts)))}, in this run"
            f" {', '.join(str(one.head) for one in sorted(heads, key=lambda one: one.head))}."
        )
    return text


def _spread(load: GateValues) -> Sequence[tuple[int, int, int]]:
    """Up to `COMPARED` tokens of a gate, evenly spread."""
    shape = load.grid.shape
    flat = np.linspace(0, np.prod(shape) - 1, COMPARED).astype(int)
    return [
        (int(i), int(j), int(k))
        for i, j, k in zip(*np.unravel_index(np.unique(flat), shape), strict=True)
    ]


NO_TOKEN = (
    "Read a location, and pick one of its tokens above (a strip of heads) to show its attention."
)


class AttentionBox(QWidget):
    """A check box that runs the encoder again, and the heads of the picked token.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._registration = weakly(None)
        self._running_for = weakly(None)  # whose network is running
        self._stopping = False  # the run was cancelled but has not ended yet
        # the weights of a run that waits for its end
        self._next: tuple[str | Path | None] | None = None
        self._number = 0
        self._cell: CellReading | None = None
        self.probes: weakref.WeakKeyDictionary[Registration, ProbeResult] = (
            weakref.WeakKeyDictionary()
        )
        self.heads: list[HeadAttention] = []
        self.task = Task(self, "the attention of a registration")
        self._build()
        self.task.progressed.connect(self._on_progress)
        self.task.finished.connect(self._on_finished)
        self.task.failed.connect(self._on_failed)
        self.task.cancelled.connect(self._on_cancelled)

    def show_registration(self, number: int, registration: Registration | None) -> None:
        """Switch to another registration, or none."""
        before = self._registration()
        self._number, self._registration = number, weakly(registration)
        if registration is not before:
            self._cancel()
            self._cell = None
            if registration is None or registration not in self.probes:
                self._stop("")
            else:
                self._set_status(mismatch_warning(self.probes[registration]))
            self.setVisible(
                registration is not None and bool(registration.routing.select(part="encoder"))
            )  # none without MoA
        self._draw()

    def show_cell(self, cell: CellReading | None) -> None:
        """Switch to another token; None and cells of the decoder have no attention."""
        self._cell = cell if cell is not None and cell.part == "encoder" else None
        self._draw()

    def run(self, weights: str | Path | None = None) -> None:
        """Run the network with the registration's own weights or other ones."""
        registration = self._registration()
        if registration is None:
            return
        if self.task.busy:
            if self._stopping:
                self._next = (weights,)
                self._set_status("Waiting for the previous run to end …", busy=True)
            return
        self._stopping, self._next = False, None
        registration_ref = self._running_for = weakly(registration)

        def probe(report: Report) -> ProbeResult | None:
            registration = registration_ref()
            return None if registration is None else run_probe(registration, report, weights)

        if self.task.start(probe):
            self._set_status("Loading the network …", busy=True)

    def _build(self) -> None:
        self.on = QCheckBox("Show attention")
        self.on.setToolTip(
            "Show the attention of the picked token within its window, for each head that it chose."
            " The network is loaded and run once in the background; takes seconds."
        )
        self.cancel, self.choose = QPushButton(CANCEL), QPushButton("Choose weights…")
        self.cancel.setToolTip("Stop the network without a result")
        self.choose.setToolTip(
            "The weights of this registration were not found: choose the .safetensors file"
        )
        self.status, self.message = QLabel(), QLabel()
        self.head = QComboBox()
        self.head.setToolTip("The head to show, of those that the token chose, with weight (Eq. 4)")
        self.ramp = Ramp()
        wrapped(self.status, self.message)
        row = arranged(QHBoxLayout(), self.cancel, self.choose)
        below = (self.head, self.ramp, self.message)
        arranged(QVBoxLayout(self), self.on, self.status, row, *below)
        self.on.toggled.connect(self._switch)
        self.cancel.clicked.connect(self._on_cancel_clicked)
        self.choose.clicked.connect(self._choose)
        self.head.activated.connect(lambda _: self._draw())
        self._set_status("")
        self._draw()

    def _switch(self, on: bool) -> None:
        registration = self._registration()
        if on and registration is not None and registration not in self.probes:
            self.run()
        elif not on:
            self._cancel()
            self._set_status("")
        self._draw()

    def _cancel(self) -> None:
        self._stopping, self._next = self.task.busy, None
        self.task.cancel()

    def _on_cancel_clicked(self) -> None:
        waiting = self._next is not None
        self._cancel()
        if waiting:  # the result of the current run is not needed any more
            self._stop("Cancelled.")

    def _is_shown(self) -> bool:
        """Whether the shown registration started the last run, and no other run is waiting."""
        return self._running_for() is self._registration() and self._next is None

    def _on_progress(self, title: str, _done: float) -> None:
        if self._is_shown() and not self._stopping:
            self.status.setText(f"{title[:1].upper()}{title[1:]} …")

    def _on_cancelled(self) -> None:
        """The run was cancelled."""
        if self._is_shown() and self.on.isChecked():
            self._stop("Cancelled.")
        self._start_next()

    def _start_next(self) -> None:
        """Start the run that waited for this one to end."""
        waiting, self._next, self._stopping = self._next, None, False
        if waiting is not None:
            self.run(*waiting)

    def _on_finished(self, probed: ProbeResult | None) -> None:
        registration = self._running_for()
        if registration is not None and probed is not None:
            self.probes[registration] = probed
            if self._is_shown():
                self._set_status(mismatch_warning(probed))
                self._draw()
        self._start_next()

    def _on_failed(self, text: str) -> None:
        if self._is_shown():
            show_error(text)
            self._stop(text)
            self.choose.setVisible(True)
        self._start_next()

    def _stop(self, text: str) -> None:
        with signals_blocked(self.on):
            self.on.setChecked(False)
        self._set_status(text)
        self._draw()

    def _set_status(self, text: str, *, busy: bool = False) -> None:
        self.status.setText(text)
        self.status.setVisible(bool(text))
        self.cancel.setVisible(busy)
        self.choose.setVisible(False)

    def _choose(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Weights of this registration", "", "Weights (*.safetensors)"
        )
        if path:
            with signals_blocked(self.on):
                self.on.setChecked(True)
            self.run(path)

    def _draw(self) -> None:
        """Refill the layer, or remove it."""
        viewer, registration = self._viewer(), self._registration()
        probed = None if registration is None else self.probes.get(registration)
        shown = self.on.isChecked() and probed is not None
        self.heads = []
        if shown and probed is not None and self._cell is not None:
            try:
                self.heads = probed.probe.at(self._cell.gate, self._cell.cell)
            except InputError as error:  # weights of another network
                self._set_status(str(error))
        for widget in (self.head, self.ramp):
            widget.setVisible(bool(self.heads))
        self.message.setVisible(shown)
        if viewer is None or registration is None:
            return
        if not self.heads:
            self.message.setText(NO_TOKEN)
            drop_attention(viewer, registration)
            return
        entries = {
            found.head: f"head {found.head} (weight {found.weight:.2f})" for found in self.heads
        }
        fill(self.head, entries)
        found = next(found for found in self.heads if found.head == self.head.currentData())
        assert self._cell is not None
        layer = show_attention(viewer, self._number, registration, found)
        top = layer.contrast_limits[1]
        self.ramp.show_layer(layer, ["0", f"{top:.3g}"])
        self.message.setText(describe(self._cell, found, self.heads))
