"""Linked views: one point, one look and one set of data in three planes, and nothing left behind."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from napari.qt import QtViewer
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_shmoareg.plugin.layers import add_layers, layers_of_pair
from napari_shmoareg.plugin.linked_views import NAME, open_linked_views


@pytest.fixture
def views(viewer, pair, qtbot):
    add_layers(viewer, layers_of_pair(pair))
    found = open_linked_views(viewer)
    qtbot.wait(50)
    yield found
    found.end()


def test_the_three_planes_share_point_data_and_look(viewer, views, qtbot):
    assert [model.dims.order for model in views.models] == [(1, 0, 2), (2, 0, 1)]
    for model in views.models:
        assert [c.name for c in model.layers] == [la.name for la in viewer.layers]
        for layer, copy in zip(viewer.layers, model.layers, strict=True):
            assert np.shares_memory(layer.data, copy.data)
    image, copies = viewer.layers[0], [model.layers[0] for model in views.models]
    image.visible, image.opacity, image.contrast_limits = False, 0.3, (3.0, 70.0)
    image.colormap, image.affine = "magma", np.diag([1, 1, 1.2, 1])
    for copy in copies:
        assert (copy.visible, copy.opacity, list(copy.contrast_limits)) == (False, 0.3, [3, 70])
        assert copy.colormap.name == "magma" and copy.affine.affine_matrix[2, 2] == 1.2
    image.data = np.array(image.data) + 1
    assert all(copy.data is image.data for copy in copies)
    viewer.dims.point = (4.0, -3.0, 6.0)
    for model in views.models:
        assert model.dims.point == pytest.approx(viewer.dims.point, abs=1e-6)
    views.models[0].dims.point = (8.0, 2.0, -1.0)
    assert viewer.dims.point == pytest.approx(views.models[1].dims.point, abs=1e-6)
    assert viewer.dims.point[0] == pytest.approx(8, abs=2)
    viewer.layers.move(0, 2)
    viewer.layers.remove(viewer.layers[-1])
    for model in views.models:
        assert [c.name for c in model.layers] == [la.name for la in viewer.layers]


def test_a_click_moves_the_crosshair_and_a_double_click_acts_as_in_the_viewer(viewer, views, qtbot):
    heard = []
    viewer.mouse_double_click_callbacks.append(lambda _, event: heard.append(event.position))
    canvas, model = views.views[0].canvas.native, views.models[0]
    zoom, spot = model.scene.camera.zoom, canvas.rect().center()
    spot.setX(spot.x() + 30)
    QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=spot)
    qtbot.wait(20)
    point = viewer.dims.point
    assert point == pytest.approx(views.models[1].dims.point, abs=1e-6)
    x = views.crosshairs[1].line.pos[2][0]
    assert x == pytest.approx(model.dims.point[2])  # the axis R lies across the coronal view
    QTest.mouseDClick(canvas, Qt.MouseButton.LeftButton, pos=spot)
    qtbot.wait(20)
    assert len(heard) == 1 and model.scene.camera.zoom == zoom
    assert heard[0][2] == pytest.approx(point[2], abs=4) and heard[0][1] == pytest.approx(point[1])


def test_closing_leaves_nothing_behind(viewer, pair, qtbot):
    add_layers(viewer, layers_of_pair(pair))
    before = len(QtViewer._instances), len(viewer.mouse_drag_callbacks)
    for _ in range(2):
        views = open_linked_views(viewer)
        assert open_linked_views(viewer) is views
        gone = [weakref.ref(each) for each in (views, *views.views, *views.models)]
        gone += [weakref.ref(copy) for model in views.models for copy in model.layers]
        viewer.window.remove_dock_widget(views)
        del views
        qtbot.wait(50)
        gc.collect()
        assert [ref() for ref in gone if ref() is not None] == []
        viewer.layers[0].opacity = 0.5
        viewer.dims.point = (4.0, -3.0, 6.0)
    assert (len(QtViewer._instances), len(viewer.mouse_drag_callbacks)) == before
    assert NAME not in viewer.window.dock_widgets


def test_a_viewer_that_is_closed_with_them_open_closes_them(viewer, pair, qtbot):
    add_layers(viewer, layers_of_pair(pair))
    open_linked_views(viewer)
    qtbot.wait(50)
