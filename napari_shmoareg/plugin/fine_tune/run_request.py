"""Builds the command of a run from the panel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import typed_path, user_path
from napari_shmoareg.plugin.controls.errors import form_message
from napari_shmoareg.plugin.controls.tasks import Task
from napari_shmoareg.plugin.fine_tune.data import DataView
from napari_shmoareg.plugin.fine_tune.form import SettingsForm
from napari_shmoareg.plugin.fine_tune.open_layers import IMAGES, LABELS, SUBJECT, write_layers
from napari_shmoareg.plugin.fine_tune.process import RunRequest
from napari_shmoareg.plugin.fine_tune.run_box import (
    CHANGEABLE,
    RunBox,
    RunFolderState,
    inspect_folder,
)

WEIGHTS = ("weights.safetensors", "best.safetensors", "last.safetensors")
NO_FOLDER = "Name a run folder"
NOT_WRITTEN = (
    "Open layers are written to disk when the run starts. The command can be copied afterwards."
)


class RequestBuilder(QObject):
    """Builds run requests from the parts of the panel; writes open layers first.

    Attributes
    ----------
    ready : Signal(list, Path)
        The command and its run folder.
    failed : Signal(str)
    """

    ready = Signal(object, object)
    failed = Signal(str)

    def __init__(self, parent: QObject, data: DataView, form: SettingsForm, run: RunBox) -> None:
        super().__init__(parent)
        self._data, self._form, self._run = data, form, run
        self._writing = Task(parent, "writing open layers for a run")
        self._pending: RunRequest | None = None
        # the run whose settings the form shows
        self._loaded: tuple[Path | None, dict[str, Any]] | None = None
        self._writing.finished.connect(self._written)
        self._writing.failed.connect(self.failed)
        data.get_settings = lambda: (self._values(), form.chosen.weights, form.chosen.preset)
        data.get_prepared = lambda: self._prepared

    @property
    def folder(self) -> Path | None:
        """The run folder; None if none is entered."""
        text = self._run.folder.text().strip()
        return typed_path(text).absolute() if text else None

    @property
    def can_resume(self) -> bool:
        """Whether the folder contains a run to resume."""
        return self.folder_state.has_run and not self.can_restart

    @property
    def can_restart(self) -> bool:
        """Whether the folder contains a run that saved nothing, which a new one can replace."""
        return self.folder_state.is_empty and self.missing is None

    @property
    def folder_state(self) -> RunFolderState:
        """The state of the folder."""
        return inspect_folder(self.folder)

    @property
    def data_folder(self) -> Path | None:
        """The folder for written layers."""
        return None if self.folder is None else self.folder.with_name(f"{self.folder.name}-data")

    @property
    def no_command(self) -> str:
        """Why the command cannot be copied yet; empty if it can."""
        layers = self._data.dataset.from_layers and not self.folder_state.has_run
        return (
            NOT_WRITTEN
            if layers and (self.data_folder is None or not self.data_folder.is_dir())
            else ""
        )

    @property
    def weights(self) -> Path | None:
        """The weights to use of the run, as `RunFolder.weights`; None if there are none."""
        paths = [] if self.folder is None else [self.folder / name for name in WEIGHTS]
        return next((path for path in paths if path.is_file()), None)

    @property
    def missing(self) -> str | None:
        """What is missing to start a new run, in a few words; None if nothing."""
        if self._writing.busy:
            return "Writing the layers…"
        invalid = self._form.invalid_setting
        return (
            self._data.dataset.missing
            or (f"Fix '{invalid}'" if invalid else None)
            or (None if self.folder is not None else NO_FOLDER)
        )

    @property
    def steps(self) -> int:
        """The number of steps in the form; 0 if invalid."""
        field = self._form.fields["steps"]
        return 0 if field.error else int(field.value)

    def request(self) -> RunRequest:
        """Build the request from the panel.

        Raises
        ------
        InputError
            If a setting is invalid or something is missing.
        """
        if self.folder is None:
            raise InputError(f"{NO_FOLDER}: a new folder for the output of the run.")
        user_path(self._run.folder.text().strip())
        if self.can_resume:
            return RunRequest(
                str(self.folder), device=self._form.chosen.device, settings=self._changed_settings()
            )
        if self.missing is not None:
            raise InputError(f"The run cannot start. {self.missing}.")
        chosen, dataset = self._form.chosen, self._data.dataset
        path, file_options = (
            str(user_path(dataset.path.text().strip()).absolute()),
            dataset.file_options,
        )
        if dataset.from_layers:
            path, file_options = (
                str(self.data_folder),
                {"images": f"{IMAGES}/*.nii.gz", "subject": SUBJECT, "kind": "folder"},
            )
            if any(each.labels is not None for each in dataset.layers.picked):
                file_options["labels"] = f"{LABELS}/*.nii.gz"
        preset = chosen.preset or ""
        return RunRequest(
            str(self.folder),
            path,
            file_options,
            chosen.weights,
            chosen.device,
            chosen.settings,
            preset,
        )

    def command_line(self) -> str:
        """Return the command as typed in a terminal.

        Raises
        ------
        InputError
            If a setting is invalid or something is missing.
        """
        if self.folder is not None and self.folder_state.has_run:
            return RunRequest(
                str(self.folder), device=self._form.chosen.device, settings=self._changed_settings()
            ).command_line("--resume")
        return self.request().command_line()

    def sync_form(self, *, is_running: bool) -> None:
        """Show the settings of the folder's run in the form, and enable those that may change."""
        folder_state = self.folder_state
        if not folder_state.has_run:
            self._loaded = None
        elif self._loaded != (self.folder, folder_state.settings):
            self._loaded = self.folder, folder_state.settings
            self._form.show_values(folder_state.settings)
        self._form.restrict_to(
            CHANGEABLE
            if folder_state.has_run and (is_running or not folder_state.is_empty)
            else None
        )

    def prepare(self, *, resume: bool) -> None:
        """Prepare a run, then emit `ready` or `failed`."""
        if resume != self.can_resume:  # the folder changed since the button was updated
            self._run.changed.emit()
            return
        try:
            request = self.request()
            if self.can_restart:
                from napari_shmoareg.training.run_folder import reset_run

                reset_run(Path(request.out))
        except InputError as error:
            self.failed.emit(form_message(error))
            return
        if resume:
            self.ready.emit(request.command("--resume"), Path(request.out))
        elif self._data.dataset.from_layers:
            picked, folder = self._data.dataset.layers.picked, Path(request.dataset)
            self._pending = request
            self._writing.start(lambda _: write_layers(picked, folder))
            self._run.changed.emit()
        else:
            self.ready.emit(request.command(), Path(request.out))

    def cancel(self) -> None:
        """Do not start a run when the layers are written."""
        self._writing.drop()

    def _written(self) -> None:
        request, self._pending = self._pending, None
        if request is not None:
            self.ready.emit(request.command(), Path(request.out))

    def _changed_settings(self) -> dict[str, object]:
        """Return the changed settings of a run to resume; none before the form shows them."""
        if self._loaded is None or self._loaded[0] != self.folder:
            return {}
        before, now = self._loaded[1], self._values(CHANGEABLE)
        return {
            name: value for name, value in now.items() if name in before and value != before[name]
        }

    @property
    def _prepared(self) -> Path | None:
        """Where a check saves prepared scans for a new run in the folder; None for another one."""
        from napari_shmoareg.training.run_folder import RunFolder

        if self.folder is None:
            return None
        try:
            run = RunFolder(self.folder)
            run.check_new()
        except InputError:  # not a folder for a new run: nothing is saved
            return None
        return run.prepared

    def _values(self, names: Sequence[str] | None = None) -> dict[str, object]:
        """Return the settings of these names, or all, including the defaults."""
        return {name: self._form.fields[name].value for name in names or self._form.fields}
