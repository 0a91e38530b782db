"""A real viewer, and a registration that is ready to be looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest
from napari.components import ViewerModel
from npe2 import PluginManager

from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.io.report import build_report
from napari_shmoareg.metrics.measure import measure
from napari_shmoareg.plugin.layers import add_layers, layers_of
from napari_shmoareg.registration.register import Registration, register


@pytest.fixture(scope="session")
def registration(phantoms, lively_network) -> Registration:
    """Of the oblique, anisotropic phantoms, by an untrained network that truly moves things; not to
    be changed.
    """
    registration = register(
        phantoms, lively_network(0.03), affine="none", device="cpu", keep="last"
    )
    load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
    report = build_report(registration, measure(registration), load, weights="untrained")
    return replace(registration, report=report, weights="untrained")


@pytest.fixture
def model(registration) -> ViewerModel:
    """A viewer without a window that has the registration open, as #1."""
    made = ViewerModel()
    add_layers(made, layers_of(registration, 1, maps=True))
    return made


@pytest.fixture
def choose():
    """Pick an entry of a combo by its value, as a person does."""

    def pick(combo, value):
        index = combo.findData(value)
        assert index >= 0
        combo.setCurrentIndex(index)
        combo.activated.emit(index)

    return pick


@pytest.fixture
def viewer(make_napari_viewer):
    """A shown viewer: only such a one draws."""
    return make_napari_viewer(show=True)


@pytest.fixture
def plugin(npe2pm):
    """The plugin as it is installed, and no other."""
    installed = PluginManager()
    installed.discover()
    manifest = installed.get_manifest("shmoareg")
    npe2pm.register(manifest)
    return manifest


@pytest.fixture
def told():
    """Of a severity ("info", "warning", "error") the text of all notifications of this test."""
    from napari.utils.notifications import notification_manager

    notification_manager.records.clear()
    return lambda severity: "\n".join(
        r.message for r in notification_manager.records if str(r.severity) == severity
    )
