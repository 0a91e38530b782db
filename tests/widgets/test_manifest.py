"""What napari is told about this plugin, and whether it is so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from napari._app_model import get_app_model
from qtpy.QtWidgets import QDockWidget

from napari_shmoareg.io.images import ITK_ENDINGS, NIFTI_ENDINGS
from napari_shmoareg.plugin.opening import PANELS, PLUGIN, Panel, dock
from napari_shmoareg.plugin.reader import SLICES


def test_the_installed_plugin_is_valid():
    program = Path(sys.executable).with_name("npe2")
    # it prints signs beyond ASCII, whatever the locale
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [program, "validate", PLUGIN], capture_output=True, encoding="utf-8", env=env
    )
    assert run.returncode == 0 and "valid" in run.stdout, run.stdout + run.stderr


def test_every_command_of_the_manifest_can_be_called(plugin):
    for command in plugin.contributions.commands:
        assert callable(command.python_name and _load(command.python_name)), command.id
        assert command.title


def test_every_command_is_offered_somewhere(plugin):
    offered = plugin.contributions
    used = {
        each.command
        for each in (*offered.widgets, *offered.readers, *offered.writers, *offered.sample_data)
    }
    used |= {item.command for items in offered.menus.values() for item in items}
    assert used == {command.id for command in offered.commands}


def test_the_register_panel_comes_first_as_a_bare_w_opens_that(plugin):
    assert tuple(widget.display_name for widget in plugin.contributions.widgets) == PANELS
    assert PANELS[0] == "Register"


def test_the_reader_is_asked_for_every_type_that_can_be_read(plugin):
    (reader,) = plugin.contributions.readers
    expected = {f"*{ending}" for ending in (*NIFTI_ENDINGS, *ITK_ENDINGS, *SLICES)} | {"shmoareg:*"}
    assert set(reader.filename_patterns) == expected and reader.accepts_directories


def test_the_preferences_hold_what_the_form_asks_for(plugin):
    from napari_shmoareg.plugin.register.form import to_preferences
    from napari_shmoareg.settings import RegistrationRequest

    page = plugin.contributions.configurations["registration"]
    kept = {name: about.default for name, about in page.properties.items()}
    assert kept == to_preferences(RegistrationRequest())


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_opens_in_a_viewer_from_the_plugins_menu(plugin, make_napari_viewer, name):
    viewer = make_napari_viewer()
    _, panel = viewer.window.add_plugin_dock_widget(PLUGIN, name)
    assert (
        type(panel).__name__ == f"{name.title().replace('-', '')}Panel"
        and panel.minimumWidth() >= 300
    )


def _panels(viewer) -> list[str]:
    """The kinds of all panels in the docks of a window, as often as there are such."""
    frames = viewer.window._qt_window.findChildren(QDockWidget)
    return sorted(frame.widget().kind for frame in frames if isinstance(frame.widget(), Panel))


def _open_by(way: str, viewer, name: str):
    """Open a panel: from the Plugins menu, as ``napari -w`` does, or as this plugin does itself."""
    if way == "menu":
        command = f"{PLUGIN}.{name.lower().replace('-', '_')}"
        get_app_model().commands.execute_command(command).result()
    elif way == "napari -w":
        viewer.window.add_plugin_dock_widget(PLUGIN, name, tabify=True)
    else:
        dock(viewer, name)
    return viewer.window.dock_widgets[f"{name} ({PLUGIN})"]


WAYS = ("menu", "napari -w", "ours")


@pytest.mark.parametrize("first", WAYS)
def test_a_viewer_has_one_panel_of_a_kind_whatever_opens_it_and_again_brings_it_to_the_front(
    plugin, make_napari_viewer, qtbot, first
):
    viewer = make_napari_viewer(show=True)
    opened = {name: _open_by(first, viewer, name) for name in PANELS}
    for way in WAYS:
        for name in PANELS:
            panel = _open_by(way, viewer, name)
            assert panel is opened[name], (first, way, name)
            qtbot.waitUntil(lambda panel=panel: not panel.visibleRegion().isEmpty())
            _open_by(way, viewer, name)
            assert panel.isVisible() and _panels(viewer) == sorted(PANELS), (first, way, name)
    assert set(viewer.window.dock_widgets) == {f"{name} ({PLUGIN})" for name in PANELS}


def test_a_panel_that_was_closed_or_hidden_opens_again(plugin, make_napari_viewer, qtbot):
    viewer = make_napari_viewer(show=True)
    panel = _open_by("menu", viewer, "Quality")
    panel.parentWidget().hide()
    assert _open_by("menu", viewer, "Quality") is panel and panel.isVisible()
    for way in WAYS:
        panel.parentWidget().destroyOnClose()  # what its x does
        assert not viewer.window.dock_widgets
        panel = _open_by(way, viewer, "Quality")
        assert panel.isVisible()
    qtbot.waitUntil(lambda: _panels(viewer) == ["Quality"])


def test_two_viewers_have_a_panel_each(plugin, make_napari_viewer):
    first, second = make_napari_viewer(), make_napari_viewer()
    panels = [dock(viewer, "Register") for viewer in (first, second)]
    assert panels[0] is not panels[1]
    assert [dock(viewer, "Register") for viewer in (first, second)] == panels
    assert [_panels(viewer) for viewer in (first, second)] == [["Register"], ["Register"]]


@pytest.mark.slow
def test_the_panel_that_sample_data_bring_is_the_one_of_the_menu(plugin, make_napari_viewer, qtbot):
    viewer = make_napari_viewer()
    viewer.open_sample(PLUGIN, "pair")
    panel = viewer.window.dock_widgets["Register (shmoareg)"]
    assert _open_by("menu", viewer, "Register") is panel and _panels(viewer) == ["Register"]


def test_two_selected_images_are_what_the_layers_menu_registers(
    plugin, make_napari_viewer, phantoms
):
    from napari_shmoareg.plugin.layers import add_layers, layers_of_pair
    from napari_shmoareg.plugin.opening import register_selected

    viewer = make_napari_viewer()
    add_layers(viewer, layers_of_pair(phantoms))
    fixed, moving = viewer.layers["fixed"], viewer.layers["moving"]
    for first, second in ((moving, fixed), (fixed, moving)):
        viewer.layers.selection = {first, second}
        viewer.layers.selection._current = second
        register_selected()
        panel = viewer.window.dock_widgets["Register (shmoareg)"]
        assert (panel.pickers.pair["moving"], panel.pickers.pair["fixed"]) == (first, second)


def test_other_than_two_selected_images_are_refused_in_plain_words(
    plugin, make_napari_viewer, phantoms, told
):
    from napari_shmoareg.plugin.layers import add_layers, layers_of_pair
    from napari_shmoareg.plugin.opening import register_selected

    viewer = make_napari_viewer()
    add_layers(viewer, layers_of_pair(phantoms))
    viewer.layers.selection = {viewer.layers["fixed"], viewer.layers["fixed_labels"]}
    register_selected()
    assert "1 of the 2 selected layers are images" in told("warning")
    assert not viewer.window.dock_widgets


def test_a_selected_image_that_cannot_be_registered_is_named_with_the_reason(
    plugin, make_napari_viewer, told
):
    from napari_shmoareg.plugin.opening import register_selected

    viewer = make_napari_viewer()
    viewer.add_image(np.zeros((4, 5, 6)), name="scan")
    viewer.add_image(np.zeros((4, 5, 6, 3)), name="photograph", rgb=True)
    viewer.layers.selection = set(viewer.layers)
    register_selected()
    assert "'photograph' is a colour image" in told("warning") and not viewer.window.dock_widgets


def test_of_two_layers_that_are_called_alike_the_selected_ones_are_picked(
    plugin, make_napari_viewer
):
    from napari_shmoareg.plugin.opening import pick

    viewer = make_napari_viewer()
    first, second = (viewer.add_image(np.zeros((4, 5, 6)), name=name) for name in "ab")
    panel = dock(viewer, "Register")
    first.name, second.name = "c", "a"  # napari tells panels of no new names
    pick(panel, second, first)
    assert (panel.pickers.pair["moving"], panel.pickers.pair["fixed"]) == (second, first)


def _load(name: str):
    from importlib import import_module

    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
