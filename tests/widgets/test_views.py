"""Patients are looked at as radiologists do, from three sides, in the middle of what is there."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QTableWidget

from napari_shmoareg.figures.panels import middle
from napari_shmoareg.geometry import Grid, Volume
from napari_shmoareg.plugin.layers import add_layers, layers_of, layers_of_pair
from napari_shmoareg.plugin.opening import dock
from napari_shmoareg.plugin.placement import layer_options, to_viewer
from napari_shmoareg.plugin.viewer import (
    axial,
    centre_on,
    coronal,
    sagittal,
    set_up_viewer,
    show_view,
    shown_view,
)


def test_right_is_on_the_left_and_front_and_top_are_up_on_the_drawn_canvas(viewer):
    values = np.zeros((30, 40, 20), np.float32)
    values[18:, 24:, 12:] = 1  # to the left (the first axis is flipped), front, top
    grid = Grid(values.shape, np.diag([-2.0, 1.5, 3.0, 1.0]))
    data, options = layer_options(Volume(values, grid, "corner"))
    viewer.add_image(data, **options, contrast_limits=(0, 1))
    viewer.dims.point = tuple(to_viewer(grid.to_world((24, 32, 16))))
    bright = {}
    for view, show in (("axial", axial), ("coronal", coronal), ("sagittal", sagittal)):
        show(viewer)
        canvas = viewer.screenshot(canvas_only=True, flash=False)[..., 0] > 128
        rows, columns = np.nonzero(canvas)
        bright[view] = (columns.mean() / canvas.shape[1] > 0.5, rows.mean() / canvas.shape[0] < 0.5)
    # the patient's left is on the right; in the sagittal view the front is on the left
    assert bright == {"axial": (True, True), "coronal": (True, True), "sagittal": (False, True)}


def test_a_view_is_known_by_its_name_and_3d_is_none_of_them(pair):
    viewer = ViewerModel()
    add_layers(viewer, layers_of_pair(pair))
    for name in ("coronal", "sagittal", "axial"):
        show_view(viewer, name)
        assert shown_view(viewer) == name and viewer.dims.ndisplay == 2
    viewer.dims.ndisplay = 3
    assert shown_view(viewer) is None


def test_the_sliders_go_to_the_middle_of_what_the_image_shows(pair):
    viewer = ViewerModel()
    add_layers(viewer, layers_of_pair(pair))
    centre_on(viewer, pair.fixed)
    steps = [r.step for r in viewer.dims.range]
    assert (
        np.abs(np.array(viewer.dims.point) - to_viewer(middle(pair.fixed))).max()
        <= max(steps) / 2 + 1e-6
    )


def test_a_viewer_of_other_axes_is_left_as_it_is():
    viewer = ViewerModel()
    viewer.add_image(np.zeros((2, 3, 4, 5)))
    before = viewer.dims.order
    coronal(viewer)
    assert viewer.dims.order == before and shown_view(viewer) is None


def test_labels_that_come_later_are_outlined_and_what_a_person_set_is_kept(pair):
    viewer = ViewerModel()
    set_up_viewer(viewer)
    set_up_viewer(viewer)
    added = add_layers(viewer, layers_of_pair(pair))
    assert [layer.contour for layer in added[2:]] == [1, 1]
    added[2].contour = 0
    set_up_viewer(viewer)
    assert added[2].contour == 0
    assert len([c for c in viewer.layers.events.inserted.callbacks if "outline" in str(c)]) == 1


def test_labels_of_others_are_not_outlined():
    viewer = ViewerModel()
    set_up_viewer(viewer)
    assert viewer.add_labels(np.ones((3, 4, 5), int)).contour == 0


@pytest.mark.slow
def test_nothing_is_cut_at_the_panels_own_width_in_a_window_of_1400_pixels(
    viewer, registration, plugin, qtbot
):
    """Panels are tabbed, the six tabs of Experts stand side by side, and cells show whole texts."""
    window = viewer.window._qt_window
    window.resize(1400, 950)
    pair = [layer for layer in layers_of_pair(registration.pair) if layer[2] == "image"]
    add_layers(viewer, pair + layers_of(registration, 1))
    panels = [dock(viewer, name) for name in ("Register", "Quality", "Experts")]
    qtbot.wait(300)
    frames = [panel.parentWidget() for panel in panels]
    tabbed = window.tabifiedDockWidgets(frames[0])
    assert set(frames[1:]) <= set(tabbed) and window.width() <= 1400
    assert [frame.windowTitle() for frame in frames] == ["Register", "Quality", "Experts"]
    bar = panels[2].tabs.tabBar()
    assert bar.count() == 6
    rects = [bar.tabRect(n) for n in range(6)]
    assert rects[-1].right() <= bar.width() and bar.rect().contains(rects[0])
    for panel in panels:
        panel.parentWidget().raise_()
        qtbot.wait(100)
        tables = [each for each in panel.findChildren(QTableWidget) if each.isVisible()]
        for table in tables:
            assert not table.verticalScrollBar().isVisible()
            for row in range(table.rowCount()):
                for column in range(table.columnCount()):
                    item = table.item(row, column)
                    space = table.columnWidth(column) - 6
                    wide = table.fontMetrics().horizontalAdvance(item.text())
                    assert wide <= space, (type(panel).__name__, item.text(), wide, space)
        if panel is panels[1]:
            assert tables
