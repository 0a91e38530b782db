"""Makes the gallery of this folder: real napari windows, on the built-in pair or on two scans of
yours.

    python resources/make_gallery.py  (without a screen: xvfb-run -s "-screen 0 1600x1000x24" python
    ...)

    python resources/make_gallery.py MOVING FIXED [--labels MOVING_LABELS FIXED_LABELS] [--out
    FOLDER]

Every picture is a screenshot of the window after the same acts that a person does: open, press
Register, tick a box."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import napari
from napari.settings import get_settings
from PIL import Image
from qtpy.QtWidgets import QApplication

from napari_shmoareg.plugin import showing
from napari_shmoareg.plugin import viewer as viewer_module
from napari_shmoareg.plugin.opening import dock
from napari_shmoareg.settings import RegistrationRequest

HERE = Path(__file__).resolve().parent
SIZE = (1500, 950)
REFINE = 60


def main() -> None:
    """Read the arguments, make the pictures."""
    reading = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reading.add_argument(
        "pair", nargs="*", metavar="MOVING FIXED", help="two scans; the built-in pair by default"
    )
    reading.add_argument("--labels", nargs=2, metavar=("MOVING_LABELS", "FIXED_LABELS"), default=())
    reading.add_argument("--out", type=Path, default=HERE)
    arguments = reading.parse_args()
    if len(arguments.pair) not in (0, 2):
        reading.error("give two scans, MOVING and FIXED, or none for the built-in pair")
    arguments.out.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(title="napari")
    viewer.window.resize(*SIZE)
    Gallery(viewer, arguments.out).make([*arguments.pair, *arguments.labels])
    viewer.close()


class Gallery:
    """Acts in a viewer, and takes a picture after each act."""

    def __init__(self, viewer: napari.Viewer, out: Path) -> None:
        self.viewer, self.out = viewer, out

    def make(self, files: list[str]) -> None:
        """All pictures, in the order in which a person would come to see these things."""
        viewer = self.viewer
        if files:
            viewer.open(files, plugin="shmoareg")
        else:
            viewer.open_sample("shmoareg", "pair")
        panel = dock(viewer, "Register")
        self.until(lambda: panel.pickers.missing is None)
        viewer.reset_view()
        self.take("gallery-opened-pair.png")
        done: list[int] = []
        panel.registered.connect(done.append)
        panel.form.settings = RegistrationRequest(refine=REFINE)
        panel.progress.button.click()
        self.until(
            lambda: (
                0.35 < panel.progress.bar.value() / max(1, panel.progress.bar.maximum())
                or bool(done)
            )
        )
        self.take("gallery-registering.png")
        self.until(lambda: bool(done))
        self.compare(done[0])
        self.experts(done[0])

    def compare(self, number: int) -> None:
        """Before and after, by the Quality panel."""
        quality = dock(self.viewer, "Quality")
        self.settle()
        for mode, stage, name in (
            ("difference", "before", "before"),
            ("difference", "after", "after"),
            ("checkerboard", "after", "checkerboard"),
            ("swipe", "after", "swipe"),
            ("two colours", "after", "two-colours"),
            ("side by side", "after", "side-by-side"),
        ):
            quality.compare_box.compare(mode, stage)
            self.settle(0.3)
            self.until(lambda: not quality.compare_box.comparer.busy)
            self.viewer.reset_view()
            self.take(f"gallery-{name}.png")
        quality.compare_box.compare("as they are")
        self.settle()
        self.viewer.reset_view()

    def experts(self, number: int) -> None:
        """Grid, Jacobian, the expert maps of x, y and z, a head map; once more in a light
        window.
        """
        viewer = self.viewer
        panel = dock(viewer, "Experts")
        tabs = {panel.tabs.tabText(n): n for n in range(panel.tabs.count())}
        panel.tabs.setCurrentIndex(tabs["Field"])
        for role in ("grid", "jacobian"):
            showing.show_role(viewer, number, role, True)
            self.take(f"gallery-{role}.png")
            showing.show_role(viewer, number, role, False)
        panel.tabs.setCurrentIndex(tabs["Maps"])
        for direction, view in zip(
            "xyz", (viewer_module.axial, viewer_module.coronal, viewer_module.sagittal), strict=True
        ):
            view(viewer)
            viewer.reset_view()
            showing.show_experts(viewer, number, direction, 1)
            self.take(f"gallery-expert-{direction}.png")
        viewer_module.axial(viewer)
        viewer.reset_view()
        showing.show_role(viewer, number, "expert_map", False)
        showing.next_head(viewer, number)
        self.take("gallery-head.png")
        showing.show_role(viewer, number, "head_map", False)
        showing.show_experts(viewer, number, "x", 1)
        get_settings().appearance.theme = viewer.theme = "light"
        self.take("gallery-light.png")
        get_settings().appearance.theme = viewer.theme = "dark"

    def take(self, name: str) -> None:
        """A picture of the whole window, in 256 colours."""
        self.settle()
        window = self.viewer.window.screenshot(flash=False)[..., :3]
        Image.fromarray(window).quantize(256).save(self.out / name, optimize=True)
        print(self.out / name)

    def until(self, ready: Callable[[], bool], seconds: float = 600) -> None:
        """Let the window live until something is ready."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"not ready after {seconds:.0f} s")
            QApplication.processEvents()
            time.sleep(0.01)

    def settle(self, seconds: float = 0.8) -> None:
        """Let everything be drawn."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)


if __name__ == "__main__":
    main()
