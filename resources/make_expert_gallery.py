"""Makes the pictures of the Experts panel in this folder: a real napari window, on a folder that
`register` wrote.

    python resources/make_expert_gallery.py FOLDER [--out FOLDER]
    (without a screen: xvfb-run -s "-screen 0 1600x1000x24" python ...)

Every picture is a screenshot of the window after what a person does: click a bar, double-click a
voxel, press Run."""

from __future__ import annotations

import argparse
from pathlib import Path

import napari
import numpy as np
from make_gallery import HERE, SIZE, Gallery
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget

from napari_shmoareg.experts.maps import token_loads
from napari_shmoareg.io import read_registration
from napari_shmoareg.model.routing import GateId
from napari_shmoareg.plugin import showing
from napari_shmoareg.plugin.layers import add_layers, layers_of, layers_of_pair
from napari_shmoareg.plugin.opening import dock

# mm from the middle: five pins
OFF_CENTRE = ((0, 0, 0), (-25, 30, 0), (25, 30, 0), (-25, -35, 0), (22, -30, 0))
WIDE = 560


def main() -> None:
    """Read the arguments, make the pictures."""
    reading = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reading.add_argument("folder", type=Path)
    reading.add_argument("--out", type=Path, default=HERE)
    arguments = reading.parse_args()
    viewer = napari.Viewer(title="napari")
    viewer.window.resize(*SIZE)
    ExpertGallery(viewer, arguments.out).make_tabs(arguments.folder)
    viewer.close()


class ExpertGallery(Gallery):
    """Goes through the tabs of the Experts panel, and takes a picture of each."""

    def make_tabs(self, folder: Path) -> None:
        """All pictures, tab by tab."""
        viewer, registration = self.viewer, read_registration(folder)
        add_layers(viewer, layers_of_pair(registration.pair))
        add_layers(viewer, layers_of(registration, 1))
        self.panel = dock(viewer, "Experts")
        holder = self.panel.parent()
        while not isinstance(holder, QDockWidget):
            holder = holder.parent()
        viewer.window._qt_window.resizeDocks([holder], [WIDE], Qt.Orientation.Horizontal)
        viewer.reset_view()
        self.settle()
        self.turn_to("Layers")
        first = next(
            load
            for load in token_loads(registration)
            if load.gate == GateId("encoder", 1, 0, "fixed")
        )
        showing.show_head(viewer, 1, first, int((first.values > 0).sum(axis=(0, 1, 2)).argmax()))
        self.take("experts-layers.png")
        showing.show_role(viewer, 1, "head_map", False)
        self.location(registration.pair.fixed.grid.centre)
        self.regions()
        self.what_if()

    def turn_to(self, name: str) -> None:
        """Bring a tab to the front."""
        tabs = self.panel.tabs
        tabs.setCurrentIndex([tabs.tabText(n) for n in range(tabs.count())].index(name))
        self.settle()

    def location(self, middle: np.ndarray) -> None:
        """Five pins, and the attention of a head of the last one."""
        self.turn_to("Location")
        (view,) = self.panel.views["Location"]
        for step in OFF_CENTRE:
            view.read(middle + np.array(step))
            view.pin.click()
        view.attention.on.click()
        self.until(lambda: not view.attention.task.busy)
        self.settle(1.5)
        self.take("experts-location.png")
        view.attention.on.click()

    def regions(self) -> None:
        """Which labels of the fixed image differ by more than chance."""
        self.turn_to("Regions")
        (view,) = self.panel.views["Regions"]
        view.reference.setCurrentIndex(view.reference.findData("regions"))
        view.compute.click()
        self.until(lambda: not view.task.busy)
        view.table.selectRow(0)
        view.table.cellClicked.emit(0, 0)
        showing.show_experts(self.viewer, 1, "x", 1)
        self.take("experts-regions.png")

    def what_if(self) -> None:
        """How far the result moves without the second expert of decoder layer 2, direction z."""
        self.turn_to("What if")
        (view,) = self.panel.views["What if"]
        view.form.where.pick(part="decoder", layer=2, direction="z")
        view.form.expert.setCurrentIndex(1)
        view.run.click()
        self.until(lambda: not view.task.busy)
        self.settle(1.5)
        self.take("experts-what-if.png")


if __name__ == "__main__":
    main()
