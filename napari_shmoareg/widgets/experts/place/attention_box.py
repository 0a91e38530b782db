"""What the token at a place attends to, drawn as a layer."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.utils.notifications import show_error
from qtpy.QtWidgets import QCheckBox, QComboBox, QFileDialog, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget
from superqt.utils import signals_blocked

from napari_shmoareg.geometry.errors import InputError
from napari_shmoareg.widgets.experts.place.attention_layer import Probed, drop_attention, probe_of, show_attention
from napari_shmoareg.widgets.experts.replaying import Errand
from napari_shmoareg.widgets.experts.section import fill
from napari_shmoareg.widgets.legend import Ramp

if TYPE_CHECKING:
    from napari import Viewer

    from napari_shmoareg.analysis.attention import HeadAttention
    from napari_shmoareg.analysis.place_reading import CellReading
    from napari_shmoareg.analysis.scene import Scene

NO_TOKEN = "Read a place, and pick one of its tokens above (a strip of heads): its attention is drawn."
ANOTHER = (
    "The network that was run again does not choose as the registration did ({same} of {asked} tokens do): these are "
    "other weights of that name, or another version. What is drawn is not what made this result."
)


class AttentionBox(QWidget):
    """A switch that runs the encoder once more, and the heads of the token that is picked.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._scene: weakref.ref[Scene] | None = None
        self._asked: weakref.ref[Scene] | None = None  # for which the network is being run
        self._number = 0
        self._cell: CellReading | None = None
        self.probes: weakref.WeakKeyDictionary[Scene, Probed] = weakref.WeakKeyDictionary()
        self.heads: list[HeadAttention] = []
        self.errand = Errand(self)
        self._build()
        self.errand.came.connect(lambda title, _done: self.status.setText(f"{title[:1].upper()}{title[1:]} …"))
        self.errand.ready.connect(self._take)
        self.errand.failed.connect(self._fail)
        self.errand.cancelled.connect(lambda: self._stop("Cancelled."))

    def show_scene(self, number: int, scene: Scene | None) -> None:
        """Be about another registration, or none."""
        before = self._found()
        self._number, self._scene = number, None if scene is None else weakref.ref(scene)
        if scene is not before:
            self.errand.cancel()
            self._cell = None
            if scene is None or scene not in self.probes:
                self._stop("")
        self._draw()

    def show_cell(self, cell: CellReading | None) -> None:
        """Be about another token; None, and cells of the decoder, have no attention."""
        self._cell = cell if cell is not None and cell.place.part == "encoder" else None
        self._draw()

    def run(self, weights: str | Path | None = None) -> None:
        """Run the network, with the registration's own weights or with others."""
        scene = self._found()
        if scene is None or self.errand.busy:
            return
        self._asked = weakref.ref(scene)
        held = self._asked

        def work_on(work: object) -> Probed | None:
            there = held()
            return None if there is None else probe_of(there, work, weights)  # type: ignore[arg-type]

        if self.errand.start(work_on, "the attention of a registration") is not None:
            self._say("Loading the network …", busy=True)

    def _build(self) -> None:
        self.on = QCheckBox("Show attention")
        self.on.setToolTip(
            "Draw, for the token that is picked, what each head it chose attends to within its window. The network is "
            "loaded and run once, beside the window; seconds."
        )
        self.cancel, self.choose = QPushButton("Cancel"), QPushButton("Choose weights…")
        self.cancel.setToolTip("Stop the network; nothing is kept")
        self.choose.setToolTip("The weights of this registration are not where they were: show the .safetensors file")
        self.status, self.says = QLabel(), QLabel()
        self.head = QComboBox()
        self.head.setToolTip("Which of the heads that the token chose to draw, with its weight (Eq. 4)")
        self.ramp = Ramp()
        for label in (self.status, self.says):
            label.setWordWrap(True)
        row = QHBoxLayout()
        for widget in (self.cancel, self.choose):
            row.addWidget(widget)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.on)
        column.addWidget(self.status)
        column.addLayout(row)
        for below in (self.head, self.ramp, self.says):
            column.addWidget(below)
        self.on.toggled.connect(self._switch)
        self.cancel.clicked.connect(self.errand.cancel)
        self.choose.clicked.connect(self._choose)
        self.head.activated.connect(lambda _: self._draw())
        self._say("")
        self._draw()

    def _switch(self, on: bool) -> None:
        scene = self._found()
        if on and scene is not None and scene not in self.probes:
            self.run()
        elif not on:
            self.errand.cancel()
            self._say("")
        self._draw()

    def _take(self, probed: Probed | None) -> None:
        scene = None if self._asked is None else self._asked()
        if scene is None or probed is None:
            return
        self.probes[scene] = probed
        self._say("" if probed.same == probed.asked else ANOTHER.format(same=probed.same, asked=probed.asked))
        self._draw()

    def _fail(self, text: str) -> None:
        show_error(text)
        self._stop(text)
        self.choose.setVisible(True)

    def _stop(self, text: str) -> None:
        with signals_blocked(self.on):
            self.on.setChecked(False)
        self._say(text)
        self._draw()

    def _say(self, text: str, *, busy: bool = False) -> None:
        self.status.setText(text)
        self.status.setVisible(bool(text))
        self.cancel.setVisible(busy)
        self.choose.setVisible(False)

    def _choose(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Weights of this registration", "", "Weights (*.safetensors)")
        if path:
            with signals_blocked(self.on):
                self.on.setChecked(True)
            self.run(path)

    def _draw(self) -> None:
        """Fill the layer, or take it away."""
        viewer, scene = self._viewer(), self._found()
        probed = None if scene is None else self.probes.get(scene)
        shown = self.on.isChecked() and probed is not None
        self.heads = []
        if shown and probed is not None and self._cell is not None:
            try:
                self.heads = probed.probe.at(self._cell.place, self._cell.cell)
            except InputError as error:  # weights of another network
                self._say(str(error))
        for widget in (self.head, self.ramp):
            widget.setVisible(bool(self.heads))
        self.says.setVisible(shown)
        if viewer is None or scene is None:
            return
        if not self.heads:
            self.says.setText(NO_TOKEN)
            drop_attention(viewer, scene)
            return
        entries = {found.head: f"head {found.head} (weight {found.weight:.2f})" for found in self.heads}
        fill(self.head, entries)
        found = next(found for found in self.heads if found.head == self.head.currentData())
        assert self._cell is not None
        layer = show_attention(viewer, self._number, scene, found)
        top = layer.contrast_limits[1]
        self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), ["0", f"{top:.3g}"])
        self.says.setText(_words(self._cell, found, self.heads))

    def _found(self) -> Scene | None:
        return None if self._scene is None else self._scene()


def _words(cell: CellReading, found: HeadAttention, heads: list[HeadAttention]) -> str:
    values, window = found.volume.values, int(found.window.sum())
    total, own = float(values.sum()), float(values[cell.cell])
    text = (
        f"Token {cell.cell} attends, by head {found.head}, to the {window} tokens of its window: the values sum to "
        f"{total:.3f}; equal attention would be {1 / max(window, 1):.3g} each, to itself it is {own:.3g}."
    )
    if {one.head for one in heads} != set(cell.experts):
        text += (
            f" In the registration this token chose the heads {', '.join(map(str, sorted(cell.experts)))}, in this run "
            f"{', '.join(str(one.head) for one in sorted(heads, key=lambda one: one.head))}."
        )
    return text
