"""The Fine-tune panel: choose and check scans, train, monitor, and use the weights."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QEvent
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QApplication, QScrollArea, QTabWidget, QVBoxLayout, QWidget

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import typed_path
from napari_shmoareg.plugin.controls.errors import form_message
from napari_shmoareg.plugin.controls.forms import arranged, scrolled
from napari_shmoareg.plugin.controls.tasks import Throttle
from napari_shmoareg.plugin.fine_tune.charts import CurvesView, LoadsView, theme_of
from napari_shmoareg.plugin.fine_tune.data import DataView
from napari_shmoareg.plugin.fine_tune.form import SettingsForm
from napari_shmoareg.plugin.fine_tune.preview import Preview
from napari_shmoareg.plugin.fine_tune.process import Follower, Mode
from napari_shmoareg.plugin.fine_tune.run_box import RunBox, button_state
from napari_shmoareg.plugin.fine_tune.run_model import Alarm, read_split
from napari_shmoareg.plugin.fine_tune.run_request import RequestBuilder
from napari_shmoareg.plugin.opening import Panel
from napari_shmoareg.plugin.registrations import unwrap

if TYPE_CHECKING:
    from napari import Viewer


COPIED = "The command was copied to the clipboard."


def use_weights(viewer: Viewer | None, requests: RequestBuilder) -> None:
    """Select a run's weights in the Register panel, and open it."""
    from napari_shmoareg.plugin.opening import dock

    if viewer is None or requests.weights is None:
        return
    panel = dock(viewer, "Register")
    panel.form.settings = replace(panel.form.settings, weights=str(requests.weights))
    panel.form.changed.emit()  # saved for the next session, as after a choice by hand


def copy_command(requests: RequestBuilder) -> None:
    """Copy the command that corresponds to the panel to the clipboard."""
    clipboard = QApplication.clipboard()
    try:
        written = requests.command_line()
    except InputError as error:
        show_error(form_message(error))
        return
    if clipboard is not None:
        clipboard.setText(written)
        show_info(COPIED)


MAX_GATES = 3  # listed in one notification


class AlarmNotifier:
    """Reports the alarm of each gate once, several in one notification."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def notify(self, alarms: Mapping[str, Alarm]) -> int:
        """Report new alarms, by gate; return the number of active ones."""
        now = [alarm for alarm in alarms.values() if alarm.over is None]
        new = [alarm for alarm in now if alarm.gate not in self._reported]
        self._reported |= {alarm.gate for alarm in new}
        if len(new) == 1:
            show_warning(f"Step {new[0].step}: {new[0].text}")
        elif new:
            gates = ", ".join(alarm.gate for alarm in new[:MAX_GATES]) + (
                " and others" if len(new) > MAX_GATES else ""
            )
            show_warning(
                f"Step {max(alarm.step for alarm in new)}: the routing has collapsed at {len(new)}"
                f" gates ({gates}). See the tab Loads."
            )
        return len(now)


WIDTH = 340
TABS = {
    "Data": "The training data and its quality check",
    "Settings": "Training settings",
    "Curves": "Losses and validation over the steps",
    "Loads": "Selected experts over the steps, and alarms",
}
BUSY = "A run is in progress. Stop it first, or wait until it ends."


class FineTunePanel(Panel):
    """Trains on a data set in a child process, and shows the progress."""

    kind = "Fine-tune"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        viewer = unwrap(napari_viewer)
        self._viewer = weakref.ref(viewer)
        self.data, self.form, self.run = DataView(viewer), SettingsForm(), RunBox()
        self.curves: CurvesView | None = None
        self.loads: LoadsView | None = None
        self.follower, self.preview = Follower(self), Preview(self, viewer)
        self._requests = RequestBuilder(self, self.data, self.form, self.run)
        self._alarms = AlarmNotifier()
        self._parts: tuple[Any, dict[str, str]] = (None, {})
        self._lay_out()
        self.run.changed.connect(self._release_watched)
        self.data.labels_unused = self._labels_unused
        self.data.labels_requested.connect(self._use_labels)
        self.form.changed.connect(self.data.offer_labels)
        for changed in (
            self.data.changed,
            self.form.changed,
            self.run.changed,
            self.follower.status_changed,
        ):
            changed.connect(self._show_run)
        self._throttle = Throttle(self, self._show)
        self.follower.changed.connect(self._throttle.request)
        self.tabs.currentChanged.connect(lambda _: self._show())
        self.run.pressed.connect(self._on_pressed)
        self.run.opened.connect(self._open)
        self.follower.started.connect(self._on_started)
        self.follower.failed.connect(self._on_failed)
        self.follower.ended.connect(self._on_ended)
        self._requests.ready.connect(self._start)
        self._requests.failed.connect(self._on_failed)
        self._connect_theme()
        self._show()

    def reset_choices(self, event: Any = None) -> None:
        """Update the list of open layers; called by napari when the layers change."""
        self.data.dataset.refresh()

    def changeEvent(self, event: QEvent | None) -> None:
        """Stop the run at its next safe step when the dock is closed."""
        super().changeEvent(event)
        if event is None or event.type() != QEvent.Type.ParentChange:
            return
        if self.parent() is None:
            self._requests.cancel()
            self.follower.close()
            self.data.checking.cancel()
            self.preview.stop()
            self._disconnect_theme()
        else:
            self._connect_theme()

    def showEvent(self, event: QShowEvent | None) -> None:
        super().showEvent(event)
        self._make_charts()
        self._show()

    def _lay_out(self) -> None:
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        bar = self.tabs.tabBar()
        assert bar is not None
        bar.setDrawBase(False)
        self._pages: dict[str, QVBoxLayout] = {}
        for n, (name, tip) in enumerate(TABS.items()):
            self.tabs.addTab(self._page(name), name)
            self.tabs.setTabToolTip(n, tip)
        self._pages["Data"].insertWidget(0, self.data)
        self._pages["Settings"].insertWidget(0, self.form)
        self.run.setContentsMargins(6, 0, 6, 6)
        arranged(QVBoxLayout(self), self.tabs, self.run, wide=self.tabs)
        self.setMinimumWidth(WIDTH)

    def _page(self, name: str) -> QScrollArea:
        body = QWidget()
        self._pages[name] = column = QVBoxLayout(body)
        column.setContentsMargins(6, 6, 6, 6)
        column.addStretch(1)
        return scrolled(body)

    def _make_charts(self) -> None:
        """Create the charts when the panel is first shown."""
        if self.curves is not None:
            return
        self.curves, self.loads = CurvesView(), LoadsView()
        self._pages["Curves"].insertWidget(0, self.curves)
        self._pages["Loads"].insertWidget(0, self.loads)
        self.curves.switched.connect(self._show)
        self.loads.switched.connect(self._show)
        self.preview.message.connect(self.curves.message.setText)
        self._apply_theme()

    def _connect_theme(self) -> None:
        viewer = self._viewer()
        if viewer is not None:
            self._disconnect_theme()
            viewer.events.theme.connect(self._apply_theme)

    def _disconnect_theme(self) -> None:
        viewer = self._viewer()
        if viewer is not None:
            viewer.events.theme.disconnect(self._apply_theme)

    def _apply_theme(self, event: Any = None) -> None:
        """Use the colours of the window."""
        viewer = self._viewer()
        if viewer is not None and self.curves is not None and self.loads is not None:
            for view in (self.curves, self.loads):
                view.set_theme(theme_of(viewer.theme))

    def _on_pressed(self, action: str) -> None:
        """Handle a button of the run."""
        if action in ("start", "restart", "resume"):
            self._requests.prepare(resume=action == "resume")
        elif action == "use":
            use_weights(self._viewer(), self._requests)
        elif action == "copy":
            copy_command(self._requests)
        else:
            self.follower.request(action)
            self._show_run()

    def _labels_unused(self) -> bool:
        field = self.form.fields["overlap_weight"]
        return not field.error and field.value == 0

    def _use_labels(self) -> None:
        """Turn on the loss of the labels; the field in the tab Settings shows it."""
        self.form.fields["overlap_weight"].value = 1.0

    def _start(self, command: list[str], folder: Path) -> None:
        """Start the child."""
        self.data.cancel_check()
        self.follower.start(command, folder)
        self._show_run()  # immediately, so that a second click does not reach the button

    def _open(self, path: str) -> None:
        if self.follower.mode is Mode.own:
            show_info(BUSY)
            return
        self.run.folder.setText(path)
        self.follower.open(typed_path(path).absolute())

    def _release_watched(self) -> None:
        """Stop following an external run when another folder is entered."""
        if self.follower.mode is not Mode.own and self.follower.folder not in (
            None,
            self._requests.folder,
        ):
            self.follower.release()

    def _on_started(self) -> None:
        """Reset the panel for another run."""
        self._alarms = AlarmNotifier()
        self.preview.forget()
        self.tabs.setCurrentIndex(list(TABS).index("Curves"))

    def _on_ended(self) -> None:
        self._show()
        end = self.follower.state.end
        if end and end["reason"] != "failed":
            show_info(self.run.message.text().splitlines()[0])

    def _on_failed(self, text: str) -> None:
        show_error(text)
        self._show()

    def _show_run(self) -> None:
        """Update the run box."""
        follower = self.follower
        is_running = follower.mode in (Mode.own, Mode.external)
        self._requests.sync_form(is_running=is_running)
        self.run.show_button_state(
            button_state(
                follower.state,
                is_running=is_running,
                is_own=follower.mode is Mode.own,
                requested=follower.requested,
                silent_seconds=follower.silent_seconds,
                missing=self._requests.missing,
                can_resume=not is_running and self._requests.can_resume,
                has_weights=self._requests.weights is not None,
                can_restart=not is_running and self._requests.can_restart,
                no_command=self._requests.no_command,
                steps=self._requests.steps,
            )
        )

    def _show(self) -> None:
        """Update the run box and the current tab."""
        state = self.follower.state
        self._show_run()
        active = self._alarms.notify(state.alarms)
        self.tabs.setTabText(list(TABS).index("Loads"), f"Loads ⚠ {active}" if active else "Loads")
        if state.scans:
            self.data.show_run(state.scans, self._parts_of_run(), state.about.get("problems") or ())
        current = list(TABS)[self.tabs.currentIndex()]
        if current == "Curves" and self.curves is not None:
            self.curves.show_state(state)
        if current == "Loads" and self.loads is not None:
            self.loads.show_state(state)
        if self.curves is not None and self.curves.preview.isChecked():
            self.preview.show(state.preview)

    def _parts_of_run(self) -> dict[str, str]:
        """Return the subset of each scan, read once when a run starts."""
        about = self.follower.state.about
        if self._parts[0] is not about and self.follower.folder is not None:
            self._parts = about, read_split(self.follower.folder) if about else {}
        return self._parts[1]
