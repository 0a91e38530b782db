"""Milliseconds from a double click to what the Location tab shows, in a real napari window.

    python benchmarks/location_click.py FOLDER [--clicks 40]
    (without a screen: xvfb-run -s "-screen 0 1600x1000x24" ...)

FOLDER is one that `shmoareg register` wrote.  Told are the figures in the panel, and the
canvas drawn again with the outline of the token; the first click, which makes the outline's layer,
by itself.  The peer in the same run is napari's own answer to the same click (its zoom by double
click), with another tab in front."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import napari
import numpy as np
from napari import Viewer
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_shmoareg.io import read_registration
from napari_shmoareg.plugin.controls.strips import CellStrip
from napari_shmoareg.plugin.layers import add_layers, layers_of, layers_of_pair
from napari_shmoareg.plugin.opening import dock


class Painted:
    """When the strips and the canvas were painted last."""

    def __init__(self, viewer: Viewer) -> None:
        self.strips = self.canvas = float("nan")
        painting = CellStrip.paintEvent

        def paint(strip: CellStrip, event: object) -> None:
            painting(strip, event)
            self.strips = time.perf_counter()

        CellStrip.paintEvent = paint  # type: ignore[method-assign, assignment]
        scene = viewer.window._qt_viewer.canvas._scene_canvas
        scene.events.draw.connect(self._drawn, position="last")

    def _drawn(self, event: object) -> None:
        self.canvas = time.perf_counter()


def click(viewer: Viewer, painted: Painted, at: QPoint) -> tuple[float, float]:
    """Ms until the strips and until the canvas were painted last within 0.5 s of a double click."""
    wait(0.2)
    painted.strips = painted.canvas = float("nan")
    began = time.perf_counter()
    native = viewer.window._qt_viewer.canvas.native
    QTest.mouseDClick(native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, at)
    wait(0.5)
    return 1000 * (painted.strips - began), 1000 * (painted.canvas - began)


def wait(seconds: float) -> None:
    """Let the window live."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()


def places(viewer: Viewer, count: int) -> list[QPoint]:
    """Points of the canvas around its middle."""
    native, lot = viewer.window._qt_viewer.canvas.native, np.random.default_rng(0)
    middle = native.width() // 2, native.height() // 2
    return [QPoint(*(int(m + lot.integers(-120, 120)) for m in middle)) for _ in range(count)]


def told(name: str, values: list[float]) -> str:
    """Median and largest; the first by itself."""
    rest = [value for value in values[1:] if value == value]
    return (
        f"{name:>34}: first {values[0]:4.0f}   median {statistics.median(rest):4.0f}   largest"
        f" {max(rest):4.0f} ms"
    )


def main() -> None:
    """Open the folder, click, print."""
    reading = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reading.add_argument("folder", type=Path)
    reading.add_argument("--clicks", type=int, default=40)
    asked = reading.parse_args()
    viewer, scene = napari.Viewer(), read_registration(asked.folder)
    add_layers(viewer, layers_of_pair(scene.pair))
    add_layers(viewer, layers_of(scene, 1))
    panel = dock(viewer, "Experts")
    viewer.reset_view()
    painted = Painted(viewer)
    tabs = {panel.tabs.tabText(n): n for n in range(panel.tabs.count())}
    panel.tabs.setCurrentIndex(tabs["Location"])
    wait(1)
    found = [click(viewer, painted, at) for at in places(viewer, asked.clicks)]
    assert panel.views["Location"][0].reading is not None
    panel.tabs.setCurrentIndex(tabs["Maps"])
    wait(1)
    zoomed = []
    for at in places(viewer, asked.clicks):
        viewer.reset_view()
        zoomed.append(click(viewer, painted, at)[1])
    print(told("figures in the panel", [strips for strips, _ in found]))
    print(told("canvas with the outline", [canvas for _, canvas in found]))
    print(told("napari's zoom (last frame of it)", zoomed))
    viewer.close()


if __name__ == "__main__":
    main()
