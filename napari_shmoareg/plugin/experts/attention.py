"""The attention of one head as a layer, and the network that says it.

What the token at a location attends to, drawn as a layer.
"""

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
from napari_shmoareg.plugin.controls.forms import arranged, fill, wrapped
from napari_shmoareg.plugin.controls.legend import Ramp
from napari_shmoareg.plugin.controls.tasks import CANCEL, Report, Task, replay_of
from napari_shmoareg.plugin.experts.pins import about, linked_layer
from napari_shmoareg.plugin.placement import KEY

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image

    from napari_shmoareg.experts.attention import AttentionProbe, HeadAttention
    from napari_shmoareg.experts.location import CellReading
    from napari_shmoareg.experts.maps import GateValues
    from napari_shmoareg.registration.register import Registration


ROLE = "attention"
ANOTHER = (
    "The network that was run again does not choose as the registration did ({same} of {asked}"
    " tokens do): these are other weights of that name, or another version. What is drawn is not"
    " what made this result."
)
ASKED = 12  # tokens of each gate whose choices are compared with those of the registration


class ProbeResult(NamedTuple):
    """A probe, and how far it is that of the registration.

    Attributes
    ----------
    probe : AttentionProbe
    same, asked : int
        Of so many tokens that were compared so many chose the same heads as in the registration.
    """

    probe: AttentionProbe
    same: int
    asked: int


def run_probe(
    registration: Registration, report: Report, weights: str | Path | None = None
) -> ProbeResult:
    """Run the encoder once more, and compare its choices with the registration's; in a worker's
    thread, seconds.

    Raises
    ------
    InputError, TooLargeError, Interrupted
        As `replay_of`.
    """
    from napari_shmoareg.experts.attention import AttentionProbe
    from napari_shmoareg.experts.maps import token_loads
    from napari_shmoareg.registration.progress import interruptible

    replay = replay_of(registration, report, weights)
    report("running the encoder", 0.6)
    with interruptible(replay.network, report.check):
        probe = AttentionProbe.of(replay)
    report("comparing with the registration", 0.9)
    same = asked = 0
    for load in token_loads(registration):
        report.check()
        for cell in _spread(load):
            chosen = {found.head for found in probe.at(load.gate, cell)}
            same += chosen == set(np.flatnonzero(load.values[cell]).tolist())
            asked += 1
    return ProbeResult(probe, same, asked)


def show_attention(
    viewer: Viewer, number: int, registration: Registration, found: HeadAttention
) -> Image:
    """Fill the attention of a head into its layer, ``#1 attention``, which is made where there is
    none.

    On the tokens' own grid, never resampled (but for the copy on straight axes of an oblique grid),
    from 0 to the largest value.  The name stays: another one would have every panel look at all
    layers again."""
    from napari_shmoareg.plugin.layers import FINER, head_colours
    from napari_shmoareg.plugin.placement import layer_options
    from napari_shmoareg.plugin.showing import refill, uncover

    data, options = layer_options(found.volume, finer=FINER, nearest=True, head=found.head)
    options["metadata"][KEY] |= about(registration, ROLE)[KEY]
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
        (layer.scale, layer.translate), _placed(options)
    ):
        layer.metadata = options["metadata"]
        layer.data = data  # each further change would draw the canvas once more
        layer.contrast_limits_range = layer.contrast_limits = options["contrast_limits"]
    else:
        refill(layer, data, options)
    uncover(viewer, layer)
    return layer  # type: ignore[return-value]


def _placed(options: dict[str, Any]) -> tuple[Any, Any]:
    return options["scale"], options["translate"]


def drop_attention(viewer: Viewer, registration: Registration) -> None:
    """Take the layer away."""
    layer = linked_layer(viewer, registration, ROLE)
    if layer is not None:
        viewer.layers.remove(layer)


def mismatch_warning(probed: ProbeResult) -> str:
    """What has to be said of a network that does not choose as the registration did."""
    return (
        "" if probed.same == probed.asked else ANOTHER.format(same=probed.same, asked=probed.asked)
    )


def words(cell: CellReading, found: HeadAttention, heads: list[HeadAttention]) -> str:
    """What is drawn of a token, and whether it chose the same heads in the registration."""
    values, window = found.volume.values, int(found.window.sum())
    total, own = float(values.sum()), float(values[cell.cell])
    text = (
        f"Token {cell.cell} attends, by head {found.head}, to the {window} tokens of its window:"
        f" the values sum to {total:.3f}; equal attention would be {1 / max(window, 1):.3g} each,"
        f" to itself it is {own:.3g}."
    )
    if {one.head for one in heads} != set(cell.experts):
        text += (
            " In the registration this token chose the heads"
            f" {', '.join(map(str, sorted(cell.experts)))}, in this run"
            f" {', '.join(str(one.head) for one in sorted(heads, key=lambda one: one.head))}."
        )
    return text


def _spread(load: GateValues) -> Sequence[tuple[int, int, int]]:
    """Some tokens of a gate, evenly spread."""
    shape = load.grid.shape
    flat = np.linspace(0, np.prod(shape) - 1, ASKED).astype(int)
    return [
        (int(i), int(j), int(k))
        for i, j, k in zip(*np.unravel_index(np.unique(flat), shape), strict=True)
    ]


NO_TOKEN = (
    "Read a location, and pick one of its tokens above (a strip of heads): its attention is drawn."
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
        self._registration: weakref.ref[Registration] | None = None
        self._asked: weakref.ref[Registration] | None = None  # for which the network is being run
        self._stopping = False  # the run was cancelled, and has not ended yet
        # the weights of a run that waits for that
        self._next: tuple[str | Path | None] | None = None
        self._number = 0
        self._cell: CellReading | None = None
        self.probes: weakref.WeakKeyDictionary[Registration, ProbeResult] = (
            weakref.WeakKeyDictionary()
        )
        self.heads: list[HeadAttention] = []
        self.task = Task(self, "the attention of a registration")
        self._build()
        self.task.progressed.connect(self._follow)
        self.task.finished.connect(self._take)
        self.task.failed.connect(self._fail)
        self.task.cancelled.connect(self._end)

    def show_registration(self, number: int, registration: Registration | None) -> None:
        """Be about another registration, or none."""
        before = self._found()
        self._number, self._registration = (
            number,
            None if registration is None else weakref.ref(registration),
        )
        if registration is not before:
            self._cancel()
            self._cell = None
            if registration is None or registration not in self.probes:
                self._stop("")
            else:
                self._say(mismatch_warning(self.probes[registration]))
            self.setVisible(
                registration is not None and bool(registration.routing.select(part="encoder"))
            )  # none without MoA
        self._draw()

    def show_cell(self, cell: CellReading | None) -> None:
        """Be about another token; None, and cells of the decoder, have no attention."""
        self._cell = cell if cell is not None and cell.part == "encoder" else None
        self._draw()

    def run(self, weights: str | Path | None = None) -> None:
        """Run the network, with the registration's own weights or with others."""
        registration = self._found()
        if registration is None:
            return
        if self.task.busy:
            if self._stopping:
                self._next = (weights,)
                self._say("Waiting for the run before to end …", busy=True)
            return
        self._stopping, self._next = False, None
        self._asked = weakref.ref(registration)
        held = self._asked

        def probe(report: Report) -> ProbeResult | None:
            there = held()
            return None if there is None else run_probe(there, report, weights)

        if self.task.start(probe):
            self._say("Loading the network …", busy=True)

    def _build(self) -> None:
        self.on = QCheckBox("Show attention")
        self.on.setToolTip(
            "Draw, for the token that is picked, what each head it chose attends to within its"
            " window. The network is loaded and run once, beside the window; seconds."
        )
        self.cancel, self.choose = QPushButton(CANCEL), QPushButton("Choose weights…")
        self.cancel.setToolTip("Stop the network; nothing is kept")
        self.choose.setToolTip(
            "The weights of this registration are not where they were: show the .safetensors file"
        )
        self.status, self.says = QLabel(), QLabel()
        self.head = QComboBox()
        self.head.setToolTip(
            "Which of the heads that the token chose to draw, with its weight (Eq. 4)"
        )
        self.ramp = Ramp()
        wrapped(self.status, self.says)
        row = arranged(QHBoxLayout(), self.cancel, self.choose)
        below = (self.head, self.ramp, self.says)
        arranged(QVBoxLayout(self), self.on, self.status, row, *below)
        self.on.toggled.connect(self._switch)
        self.cancel.clicked.connect(self._give_up)
        self.choose.clicked.connect(self._choose)
        self.head.activated.connect(lambda _: self._draw())
        self._say("")
        self._draw()

    def _switch(self, on: bool) -> None:
        registration = self._found()
        if on and registration is not None and registration not in self.probes:
            self.run()
        elif not on:
            self._cancel()
            self._say("")
        self._draw()

    def _cancel(self) -> None:
        self._stopping, self._next = self.task.busy, None
        self.task.cancel()

    def _give_up(self) -> None:
        waiting = self._next is not None
        self._cancel()
        if waiting:  # what still runs is no one's any more
            self._stop("Cancelled.")

    def _is_shown(self) -> bool:
        """Whether the network runs, or ran, for the registration that is shown, and still has to be
        told of.
        """
        return self._asked is not None and self._asked() is self._found() and self._next is None

    def _follow(self, title: str, _done: float) -> None:
        if self._is_shown() and not self._stopping:
            self.status.setText(f"{title[:1].upper()}{title[1:]} …")

    def _end(self) -> None:
        """The run was cancelled."""
        if self._is_shown() and self.on.isChecked():
            self._stop("Cancelled.")
        self._go_on()

    def _go_on(self) -> None:
        """Start the run that waited for this one to end."""
        wanted, self._next, self._stopping = self._next, None, False
        if wanted is not None:
            self.run(*wanted)

    def _take(self, probed: ProbeResult | None) -> None:
        registration = None if self._asked is None else self._asked()
        if registration is not None and probed is not None:
            self.probes[registration] = probed
            if self._is_shown():
                self._say(mismatch_warning(probed))
                self._draw()
        self._go_on()

    def _fail(self, text: str) -> None:
        if self._is_shown():
            show_error(text)
            self._stop(text)
            self.choose.setVisible(True)
        self._go_on()

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
        path, _ = QFileDialog.getOpenFileName(
            self, "Weights of this registration", "", "Weights (*.safetensors)"
        )
        if path:
            with signals_blocked(self.on):
                self.on.setChecked(True)
            self.run(path)

    def _draw(self) -> None:
        """Fill the layer, or take it away."""
        viewer, registration = self._viewer(), self._found()
        probed = None if registration is None else self.probes.get(registration)
        shown = self.on.isChecked() and probed is not None
        self.heads = []
        if shown and probed is not None and self._cell is not None:
            try:
                self.heads = probed.probe.at(self._cell.gate, self._cell.cell)
            except InputError as error:  # weights of another network
                self._say(str(error))
        for widget in (self.head, self.ramp):
            widget.setVisible(bool(self.heads))
        self.says.setVisible(shown)
        if viewer is None or registration is None:
            return
        if not self.heads:
            self.says.setText(NO_TOKEN)
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
        self.ramp.show_colours(layer.colormap.map(np.linspace(0, 1, 16)), ["0", f"{top:.3g}"])
        self.says.setText(words(self._cell, found, self.heads))

    def _found(self) -> Registration | None:
        return None if self._registration is None else self._registration()
