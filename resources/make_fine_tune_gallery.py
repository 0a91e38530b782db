"""Makes the pictures of the Fine-tune panel in this folder: a real napari window, on a run of
`shmoareg fine-tune`.

    python resources/make_fine_tune_gallery.py RUN [--out FOLDER]
    (without a screen: xvfb-run -s "-screen 0 1600x1000x24" python ...)

Every picture is a screenshot of the window after what a person does: open the run, turn to a tab.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import napari
from make_gallery import HERE, SIZE, Gallery
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget

from napari_shmoareg.plugin.opening import dock

WIDE = 620


def main() -> None:
    """Read the arguments, make the pictures."""
    reading = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reading.add_argument("run", type=Path)
    reading.add_argument("--out", type=Path, default=HERE)
    arguments = reading.parse_args()
    viewer = napari.Viewer(title="napari")
    viewer.window.resize(*SIZE)
    FineTuneGallery(viewer, arguments.out).make_tabs(arguments.run)
    viewer.close()


class FineTuneGallery(Gallery):
    """Opens a run in the panel, and takes a picture of each tab that tells of it."""

    def make_tabs(self, run: Path) -> None:
        """All pictures, tab by tab."""
        panel = dock(self.viewer, "Fine-tune")
        holder = panel.parent()
        while not isinstance(holder, QDockWidget):
            holder = holder.parent()
        self.viewer.window._qt_window.resizeDocks([holder], [WIDE], Qt.Orientation.Horizontal)
        panel._open(str(run))
        for _ in range(20):
            self.settle()
        panel.curves.preview.setChecked(True)
        for _ in range(20):
            self.settle()
        self.take("fine-tune-curves.png")
        panel.tabs.setCurrentIndex(
            [panel.tabs.tabText(n).split()[0] for n in range(panel.tabs.count())].index("Loads")
        )
        for _ in range(10):
            self.settle()
        self.take("fine-tune-loads.png")


if __name__ == "__main__":
    main()
