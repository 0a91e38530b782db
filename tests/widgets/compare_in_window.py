"""Goes from every way of comparing to every other one, in a real window; run as a process of its
own.

Usage: ``compare_in_window.py FOLDER [--every]``, with the folder of a registration.  Prints how
many changes were made; a crash of napari ends the process by a signal.  ``--every`` makes every
change four times: in 2D and in 3D, with and without another layer removed in the same turn of the
event loop (minutes)."""

from __future__ import annotations

import faulthandler
import gc
import sys
import time
from collections.abc import Callable, Iterator

import napari
import numpy as np
from qtpy.QtWidgets import QApplication

from napari_shmoareg.io import read_registration
from napari_shmoareg.plugin.layers import add_layers, layers_of, layers_of_pair
from napari_shmoareg.plugin.quality.compare_box import MODES, NO_COMPARISON, CompareBox

CRASHED = tuple(
    mode for target in ("checkerboard", "swipe", "difference") for mode in ("side by side", target)
)
LONGEST = 60  # seconds for one comparison
# turns of the event loop with a paint after each change: a damaged canvas dies at the second
PAINTS = 2


def every_pair(names: list[str]) -> Iterator[str]:
    """A walk through all ordered pairs of names, each once, that begins and ends with the first
    name.
    """
    left = {name: [other for other in names if other != name] for name in names}
    walk, found = [names[0]], []
    while walk:
        if left[walk[-1]]:
            walk.append(left[walk[-1]].pop())
        else:
            found.append(walk.pop())
    yield from reversed(found)


def paint(viewer: napari.Viewer) -> None:
    """Draw the canvas anew, several times, as a person who moves the mouse has it drawn."""
    for _ in range(PAINTS):
        viewer.window._qt_viewer.canvas.native.update()
        QApplication.processEvents()


def wait_for(ready: Callable[[], bool]) -> None:
    """Let the window go on until something is so."""
    began = time.monotonic()
    while not ready():
        assert time.monotonic() - began < LONGEST, "the comparison did not come"
        QApplication.processEvents()


def main(folder: str, every: bool) -> None:
    """Make every change once, some in 2D and some in 3D, some with a layer removed in the same
    turn; or all so.
    """
    faulthandler.enable()
    viewer = napari.Viewer(ndisplay=2)
    viewer.window.resize(600, 400)
    registration = read_registration(folder)
    pair = [layer for layer in layers_of_pair(registration.pair) if layer[2] == "image"]
    add_layers(viewer, pair + layers_of(registration, 1)[:2])  # fewer layers, fewer seconds
    _, panel = viewer.window.add_plugin_dock_widget("shmoareg", "Quality")
    # napari collects garbage whenever a layer is removed; what is there now need not be looked at
    gc.freeze()
    walk, changes = list(every_pair(list(MODES)))[1:], 0
    half = len(walk) // 2
    rounds = {2: walk if every else walk[:half], 3: walk if every else [*walk[half:], *CRASHED]}
    for ndisplay, modes in rounds.items():
        viewer.dims.ndisplay = ndisplay
        for removes in (False, True) if every else (None,):
            for n, mode in enumerate(modes):
                change(
                    viewer,
                    panel.compare_box,
                    mode,
                    removes=n % 4 == 1 if removes is None else removes,
                )
                changes += 1
    print(f"{changes} changes")
    viewer.close()


def change(viewer: napari.Viewer, box: CompareBox, mode: str, *, removes: bool) -> None:
    """Go to another way of comparing, with or without another layer removed before the next
    paint.
    """
    if removes:
        other = viewer.add_image(np.zeros((4, 5, 6), np.float32), name="another", units="mm")
        paint(viewer)
    box.compare(mode)
    if removes:
        viewer.layers.remove(other)
    wait_for(lambda: not box.comparer.busy)
    current = box.comparer.current
    assert (current.prepared.mode if current else NO_COMPARISON) == mode
    paint(viewer)


if __name__ == "__main__":
    main(sys.argv[1], every="--every" in sys.argv)
