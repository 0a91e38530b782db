"""Runs inside a real napari, as its start-up script: waits, looks, writes what it saw, closes the
window.

LOOK_INTO names a folder for seen.json and window.png, LOOK_FOR how many layers and which panels to
wait for, such as ``2 Register``.  After 120 s it looks whatever there is."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import napari
import numpy as np
from napari.utils.notifications import notification_manager
from qtpy import API_NAME
from qtpy.QtCore import QTimer

EVERY, CALM, LONGEST = 100, 10, 120  # ms between looks, looks for all to settle, seconds


class Look:
    """Looks from time to time, once and for all when what is waited for is there."""

    def __init__(self) -> None:
        count, *self.panels = os.environ["LOOK_FOR"].split()
        self.count, self.calm, self.began = int(count), 0, time.monotonic()
        self.timer = QTimer()
        self.timer.timeout.connect(self.look)
        self.timer.start(EVERY)

    def look(self) -> None:
        viewer = napari.current_viewer()
        if viewer is None:
            return
        docked = set(viewer.window.dock_widgets)
        ready = (
            len(viewer.layers) >= self.count
            and {f"{name} (shmoareg)" for name in self.panels} <= docked
        )
        self.calm = self.calm + 1 if ready else 0
        if self.calm < CALM and time.monotonic() - self.began < LONGEST:
            return
        self.timer.stop()
        self.write(viewer, sorted(docked), Path(os.environ["LOOK_INTO"]))
        viewer.close()

    def write(self, viewer, docked, folder) -> None:
        from napari_shmoareg.plugin.placement import tag

        viewer.window.screenshot(str(folder / "window.png"), flash=False)
        canvas, zoom = viewer.screenshot(flash=False), viewer.scene.camera.zoom
        viewer.reset_view()
        seen = {
            "layers": {
                layer.name: [layer._type_string, tag(layer, "role"), layer.visible]
                for layer in viewer.layers
            },
            "docked": docked,
            "torch": "torch" in sys.modules,
            "binding": API_NAME,
            "colours": len(np.unique(canvas.reshape(-1, 4), axis=0)),
            "whole": abs(viewer.scene.camera.zoom - zoom) < 1e-3 * zoom,
            "errors": [
                r.message for r in notification_manager.records if str(r.severity) == "error"
            ],
        }
        (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")


napari.shmoareg_look = Look()  # held, as nothing else would
