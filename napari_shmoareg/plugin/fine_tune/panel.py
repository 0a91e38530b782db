"""The Fine-tune panel: choose scans, check them, train, watch, and use the weights."""

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
from napari_shmoareg.plugin.controls.errors import in_words_of_the_form
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


COPIED = "The command is on the clipboard."


def use_weights(viewer: Viewer | None, requests: RequestBuilder) -> None:
    """Choose a run's weights in the Register panel, and bring that up."""
    from napari_shmoareg.plugin.opening import dock

    if viewer is None or requests.weights is None:
        return
    panel = dock(viewer, "Register")
    panel.form.settings = replace(panel.form.settings, weights=str(requests.weights))
    panel.form.changed.emit()  # kept for the next start, as what is chosen by hand


def copy_command(requests: RequestBuilder) -> None:
    """Put the command of what the panel says on the clipboard."""
    clipboard = QApplication.clipboard()
    try:
        written = requests.command_line()
    except InputError as error:
        show_error(in_words_of_the_form(error))
        return
    if clipboard is not None:
        clipboard.setText(written)
        show_info(COPIED)


MAX_GATES = 3  # places in one notification


class AlarmNotifier:
    """Tells of each place once: in one notification what came together, and nothing that is
    over.
    """

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def notify(self, alarms: Mapping[str, Alarm]) -> int:
        """Tell of new alarms, by place; returns how many are not over."""
        now = [alarm for alarm in alarms.values() if alarm.over is None]
        new = [alarm for alarm in now if alarm.gate not in self._reported]
        self._reported |= {alarm.gate for alarm in new}
        if len(new) == 1:
            show_warning(f"Step {new[0].step}: {new[0].text}")
        elif new:
            places = ", ".join(alarm.gate for alarm in new[:MAX_GATES]) + (
                " and others" if len(new) > MAX_GATES else ""
            )
            show_warning(
                f"Step {max(alarm.step for alarm in new)}: the routing has collapsed at {len(new)}"
                f" places ({places}). The tab Loads says what to do."
            )
        return len(now)


WIDTH = 340
TABS = {
    "Data": "What is learned from, and what the check-up says of it",
    "Settings": "How it is learned",
    "Curves": "Losses and validation over the steps, as they come",
    "Loads": "Which experts are chosen, over the steps, and alarms",
}
BUSY = "A run is under way. Stop it first, or wait for its end."


class FineTunePanel(Panel):
    """Learns in a child process from a data set, and shows how that goes.

    Parameters
    ----------
    napari_viewer : Viewer
    """

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
        """Offer the layers that are open now; napari calls it when they change."""
        self.data.dataset.refresh()

    def changeEvent(self, event: QEvent | None) -> None:
        """A dock that is closed lets its panel go: a run of it stops at its next safe step."""
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
        """Load what draws, when the panel is seen for the first time."""
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
        """Draw in the colours of the window."""
        viewer = self._viewer()
        if viewer is not None and self.curves is not None and self.loads is not None:
            for view in (self.curves, self.loads):
                view.set_theme(theme_of(viewer.theme))

    def _on_pressed(self, what: str) -> None:
        """A button of the run."""
        if what in ("start", "anew", "resume"):
            self._requests.prepare(resume=what == "resume")
        elif what == "use":
            use_weights(self._viewer(), self._requests)
        elif what == "copy":
            copy_command(self._requests)
        else:
            self.follower.request(what)
            self._show_run()

    def _start(self, command: list[str], folder: Path) -> None:
        """All is ready: start the child."""
        self.data.cancel_check()
        self.follower.start(command, folder)
        self._show_run()  # at once: a second click must not find the button

    def _open(self, path: str) -> None:
        if self.follower.mode is Mode.own:
            show_info(BUSY)
            return
        self.run.folder.setText(path)
        self.follower.open(typed_path(path).absolute())

    def _release_watched(self) -> None:
        """Another folder stands in the field: a run that is only watched is let go of."""
        if self.follower.mode is not Mode.own and self.follower.folder not in (
            None,
            self._requests.folder,
        ):
            self.follower.release()

    def _on_started(self) -> None:
        """Another run is shown."""
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
        """Bring the footer up to date."""
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
        """Bring the panel up to date: the footer, and the tab in front."""
        state = self.follower.state
        self._show_run()
        now = self._alarms.notify(state.alarms)
        self.tabs.setTabText(list(TABS).index("Loads"), f"Loads ⚠ {now}" if now else "Loads")
        if state.scans:
            self.data.show_run(state.scans, self._parts_of_run(), state.about.get("problems") or ())
        front = list(TABS)[self.tabs.currentIndex()]
        if front == "Curves" and self.curves is not None:
            self.curves.show_state(state)
        if front == "Loads" and self.loads is not None:
            self.loads.show_state(state)
        if self.curves is not None and self.curves.preview.isChecked():
            self.preview.show(state.preview)

    def _parts_of_run(self) -> dict[str, str]:
        """Who learns and who judges, read once per run: when it begins."""
        about = self.follower.state.about
        if self._parts[0] is not about and self.follower.folder is not None:
            self._parts = about, read_split(self.follower.folder) if about else {}
        return self._parts[1]
