"""Milliseconds from a double click to the update of the Location tab, in a real napari window.

    python benchmarks/location_click.py FOLDER [--clicks 40]
    (without a screen: xvfb-run -s "-screen 0 1600x1000x24" ...)

FOLDER was written by `shmoareg register`.  Measured are the update of the figures in the panel and
the redraw of the canvas with the token's outline; the first click, which creates the outline layer,
is reported separately.  For comparison: napari's own response to the same click (zoom by double
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
from qtpy.QtGui import QPaintEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_shmoareg.io import read_registration
from napari_shmoareg.plugin.controls.bars import BoxChart
from napari_shmoareg.plugin.layers import add_layers, layers_of, layers_of_pair
from napari_shmoareg.plugin.opening import dock


class PaintTimes:
    """Times of the last paint of the strips and the canvas."""

    def __init__(self, viewer: Viewer) -> None:
        self.strips = self.canvas = float("nan")
        original = BoxChart.paintEvent

        def paint(strip: BoxChart, event: QPaintEvent | None) -> None:
            original(strip, event)
            self.strips = time.perf_counter()

        BoxChart.paintEvent = paint  # type: ignore[method-assign, assignment]
        scene = viewer.window._qt_viewer.canvas._scene_canvas
        scene.events.draw.connect(self._drawn, position="last")

    def _drawn(self, event: object) -> None:
        self.canvas = time.perf_counter()


def click(viewer: Viewer, times: PaintTimes, at: QPoint) -> tuple[float, float]:
    """Ms from a double click to the last paint, within 0.5 s, of the strips and of the canvas."""
    wait(0.2)
    times.strips = times.canvas = float("nan")
    began = time.perf_counter()
    native = viewer.window._qt_viewer.canvas.native
    QTest.mouseDClick(native, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, at)  # type: ignore[call-overload]
    wait(0.5)
    return 1000 * (times.strips - began), 1000 * (times.canvas - began)


def wait(seconds: float) -> None:
    """Process Qt events for some seconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()


def random_points(viewer: Viewer, count: int) -> list[QPoint]:
    """Random points around the centre of the canvas."""
    native, rng = viewer.window._qt_viewer.canvas.native, np.random.default_rng(0)
    middle = native.width() // 2, native.height() // 2
    return [QPoint(*(int(m + rng.integers(-120, 120)) for m in middle)) for _ in range(count)]


def format_times(name: str, values: list[float]) -> str:
    """Format the first value, and median and maximum of the others."""
    rest = [value for value in values[1:] if value == value]
    return (
        f"{name:>34}: first {values[0]:4.0f}   median {statistics.median(rest):4.0f}   maximum"
        f" {max(rest):4.0f} ms"
    )


def main() -> None:
    """Open the folder, click, and print the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clicks", type=int, default=40)
    arguments = parser.parse_args()
    viewer, scene = napari.Viewer(), read_registration(arguments.folder)
    add_layers(viewer, layers_of_pair(scene.pair))
    add_layers(viewer, layers_of(scene, 1))
    panel = dock(viewer, "Experts")
    viewer.reset_view()
    times = PaintTimes(viewer)
    tabs = {panel.tabs.tabText(n): n for n in range(panel.tabs.count())}
    panel.tabs.setCurrentIndex(tabs["Location"])
    wait(1)
    found = [click(viewer, times, at) for at in random_points(viewer, arguments.clicks)]
    assert panel.views["Location"][0].reading is not None
    panel.tabs.setCurrentIndex(tabs["Maps"])
    wait(1)
    zoomed = []
    for at in random_points(viewer, arguments.clicks):
        viewer.reset_view()
        zoomed.append(click(viewer, times, at)[1])
    print(format_times("figures in the panel", [strips for strips, _ in found]))
    print(format_times("canvas with the outline", [canvas for _, canvas in found]))
    print(format_times("napari's zoom (last frame of it)", zoomed))
    viewer.close()


if __name__ == "__main__":
    main()
