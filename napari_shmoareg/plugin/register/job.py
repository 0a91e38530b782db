"""A registration of layers in a background thread, and the insertion of its result."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer, Signal

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, Volume, VolumePair
from napari_shmoareg.plugin.controls.errors import explain
from napari_shmoareg.plugin.controls.tasks import Report, preload, single_shot
from napari_shmoareg.plugin.placement import placement_of, tag, volume_before, volume_of
from napari_shmoareg.plugin.registrations import (
    layers_of_registration,
    next_number,
    open_registrations,
    renumbered,
)
from napari_shmoareg.plugin.viewer_state import keep_view
from napari_shmoareg.registration.progress import (
    Interrupted,
    interruptible,
    overall_progress,
    registration_phases,
)
from napari_shmoareg.settings import RegistrationRequest

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Layer

    from napari_shmoareg.geometry import Transform
    from napari_shmoareg.plugin.controls.pickers import LandmarkStart
    from napari_shmoareg.registration.register import Registration


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """A registration and its layers.

    Attributes
    ----------
    number : int
    registration : Registration
    layers : list of (data, options, type)
        Bottom first.
    notes : list of str
        Changes to the inputs that the user should know.
    """

    number: int
    registration: Registration
    layers: list[Any]
    notes: list[str] = field(default_factory=list)


class LayerRegistration:
    """The function of a task: reads layers, registers, measures and creates the result layers.

    Parameters
    ----------
    layers : mapping of role to Layer
        "moving", "fixed", and optionally "moving_labels", "fixed_labels", "fixed_mask".
    settings : RegistrationRequest
    number : int
        Number of the registration, for the names of its layers.
    landmarks : LandmarkStart, optional
        To start from instead of the placement of the moving layer.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        settings: RegistrationRequest,
        number: int,
        landmarks: LandmarkStart | None = None,
    ) -> None:
        self.number, self._layers, self._settings = number, dict(layers), settings
        self._landmarks = landmarks
        self._parts, self._longest, self._furthest = registration_phases(settings.refine), 0, 0.0

    def __call__(self, report: Report) -> RegistrationResult:
        """Run the registration, in a background thread.

        Raises
        ------
        InputError
            With the setting names of the form.
        Interrupted
            If it was cancelled.
        """
        # otherwise the collector stops all threads for a third of a second to traverse torch
        gc.freeze()
        memory_before = 0
        self._report = report
        outcome: RegistrationResult | Exception
        try:
            self._report_progress("loading", 0.0)
            preload().exception()  # the registration raises its errors
            memory_before = _cuda_memory()
            outcome = self._register()
        except Interrupted:
            outcome = Interrupted()  # a new one: the frames of this one refer to the network
        except Exception as error:
            outcome = InputError(explain(error, self._longest))
        finally:
            gc.unfreeze()
        self._layers.clear()
        _release_cuda(memory_before)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _register(self) -> RegistrationResult:
        from napari_shmoareg.experts.load import ExpertLoad
        from napari_shmoareg.io.report import build_report
        from napari_shmoareg.metrics.measure import measure
        from napari_shmoareg.plugin.layers import layers_of

        self._report_progress("reading", 0.0)
        pair, placement, notes = _read(self._layers)
        weights, registration = self._deform(pair, self._start(pair, placement))
        self._report_progress("measuring", 0.0)
        quality = measure(registration)
        self._report_progress("measuring", 0.4)
        load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
        report = build_report(registration, quality, load, weights=weights)
        registration = replace(registration, report=report, weights=Path(weights).stem)
        self._report_progress("drawing", 0.6)
        layers = layers_of(registration, self.number)
        self._report_progress("drawing", 1.0)
        return RegistrationResult(self.number, registration, layers, notes)

    def _start(
        self, pair: VolumePair, placement: NDArray[np.float64] | None
    ) -> tuple[Transform, str] | None:
        """Return the initial transform and its origin; None to start from the headers."""
        from napari_shmoareg.geometry.transform import Transform, fit_landmarks

        if self._landmarks is not None:
            kind, fixed, moving = self._landmarks
            return fit_landmarks(fixed, moving, kind, pair.fixed.grid)
        if placement is None:
            return None
        initial = Transform(np.linalg.inv(placement).astype(np.float64))
        centre = pair.moving.grid.centre
        shift = float(np.linalg.norm(placement[:3, :3] @ centre + placement[:3, 3] - centre))
        return initial, f"as placed in the viewer, its centre {shift:.1f} mm from where it was"

    def _deform(
        self, pair: VolumePair, start: tuple[Transform, str] | None
    ) -> tuple[str, Registration]:
        """Return the name of the weights and the registration; the network is released."""
        from napari_shmoareg.io import load_network
        from napari_shmoareg.io.model_card import NO_NETWORK, choose_device, choose_weights
        from napari_shmoareg.registration.register import SIZE, register

        settings, device = self._settings, choose_device(self._settings.device)
        network, weights, reason = None, NO_NETWORK, "none, as requested"
        if settings.weights != NO_NETWORK:
            weights, reason = choose_weights(settings.weights, device)
            network = load_network(weights, device=device)
        size = (
            settings.size
            if settings.size is not None
            else SIZE
            if network is None
            else network.config.size
        )
        self._longest = size if isinstance(size, int) else max(pair.fixed.grid.shape)
        with nullcontext() if network is None else interruptible(network, self._report.check):
            registration = register(
                pair,
                network,
                settings,
                initial=None if start is None else start[0],
                device=device,
                progress=self._report_progress,
            )
        first = {"weights": reason} | ({} if start is None else {"initial": start[1]})
        return weights, replace(registration, choices={**first, **registration.choices})

    def _report_progress(self, phase: str, fraction: float) -> None:
        title, done = overall_progress(self._parts, phase, fraction)
        self._furthest = max(done, self._furthest)
        self._report(title, self._furthest)


def _read(
    layers: Mapping[str, Layer],
) -> tuple[VolumePair, NDArray[np.float64] | None, list[str]]:
    """Return the pair of the layers, the placement of the moving one, and notes.

    The moving image is read where it was before it was moved; labels are resampled to the grids of
    their images.
    """
    from napari_shmoareg.geometry.resample import resample

    placement = placement_of(layers["moving"])
    volumes = {role: volume_of(layer) for role, layer in layers.items() if role != "moving"}
    volumes["moving"] = volume_of(layers["moving"], as_placed=False)
    if placement is not None and "moving_labels" in layers:
        volumes["moving_labels"] = volume_before(layers["moving_labels"], placement)
    notes: list[str] = []
    fixed_placement = placement_of(layers["fixed"])
    if fixed_placement is not None:
        for role in ("fixed_labels", "fixed_mask"):
            if role in layers and placement_of(layers[role]) is None:  # as filed, so moved along
                own = volumes[role]
                grid = Grid(own.grid.shape, fixed_placement @ own.grid.affine)
                volumes[role] = replace(own, grid=grid)
        notes.append(
            f"The fixed image '{layers['fixed'].name}' was moved in the viewer: the result and its"
            " transform refer to where it lies there, not to its file. To place an image by hand,"
            " move the moving one."
        )
    inputs: dict[str, Volume] = dict(volumes)
    for role in ("moving_labels", "fixed_labels", "fixed_mask"):
        labels, image = volumes.get(role), volumes[role.split("_")[0]]
        if labels is not None and not labels.grid.same_space(image.grid):
            inputs[role] = resample(labels, image.grid)
            notes.append(
                f"'{labels.name}' is on another grid than its image '{image.name}': it"
                " was resampled to it by nearest neighbour."
            )
    return VolumePair(**inputs), placement, notes


def _cuda_memory() -> int:
    """Return the bytes in use on a CUDA device, 0 without one; does not import torch."""
    return 0 if (cuda := _cuda()) is None else cuda.memory_allocated()


def _release_cuda(memory_before: int) -> None:
    """Release unused CUDA memory."""
    if _cuda_memory() > memory_before:
        gc.collect()
    if (cuda := _cuda()) is not None:
        cuda.empty_cache()


def _cuda() -> Any:
    """Return ``torch.cuda`` if it is in use; a partially imported torch has none."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda if getattr(cuda, "is_initialized", bool)() else None


Inputs = Mapping[str, "weakref.ref[Layer]"]
LAYER_INTERVAL = 10  # ms between adding two layers, to keep the viewer responsive
LAYER_SHARE = 0.01  # of the progress bar, per layer


class LayerAdder(QObject):
    """Adds layers one per turn of the event loop, to keep the viewer responsive.

    Attributes
    ----------
    progressed : Signal(str, float)
        After each layer.
    finished : Signal(int)
        After the last layer, with the number of the registration in the viewer.
    failed : Signal(str)
        The error message if a layer could not be added.
    """

    progressed = Signal(str, float)
    finished = Signal(int)
    failed = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer: Callable[[], Viewer | None] = lambda: None
        self._result: RegistrationResult | None = None
        self._number, self._inputs = 0, dict[str, "weakref.ref[Layer]"]()
        self._added: list[weakref.ref[Layer]] = []
        self._timer = single_shot(self, LAYER_INTERVAL, self._on_timer)

    def start(self, viewer: Viewer, result: RegistrationResult, inputs: Inputs) -> None:
        """Add the layers of a result of these inputs."""
        self._viewer, self._result, self._inputs = weakref.ref(viewer), result, dict(inputs)
        self._number, self._added = result.number, []
        self._timer.start()

    def cancel(self) -> None:
        """Stop, and remove the added layers, unless all were added."""
        if self._result is not None:
            self._result = None
            QTimer.singleShot(0, partial(_remove_added, self._viewer, self._added))

    def _on_timer(self) -> None:
        viewer, result = self._viewer(), self._result
        if viewer is None or result is None:
            return
        try:
            if result.layers:
                self._add_one(viewer, result.layers)
                if self._result is None:  # cancelled in the meantime
                    _remove_added(self._viewer, self._added)
                    return
                self.progressed.emit("adding layers", 1 - LAYER_SHARE * len(result.layers))
                self._timer.start()
                return
            from napari_shmoareg.plugin.quality.compare import comparison_suspended

            with comparison_suspended(viewer):
                self._arrange(viewer, self._number)
        except Exception as error:
            self._result = None
            self.failed.emit(explain(error))
            return
        self._result = None
        self.finished.emit(self._number)

    def _add_one(self, viewer: Viewer, layers: list[Any]) -> None:
        """Add the next layer; before the first one, change a number that was used meanwhile."""
        from napari_shmoareg.plugin.layers import add_layers

        if not self._added and self._number in open_registrations(viewer):
            self._number = next_number(viewer)
            layers[:] = [
                (data, renumbered(options, self._number), kind) for data, options, kind in layers
            ]
        with keep_view(viewer):
            self._added += map(weakref.ref, add_layers(viewer, [layers.pop(0)]))

    def _arrange(self, viewer: Viewer, number: int) -> None:
        """Show the fixed and warped images; hide the moving image, the labels and other results."""
        for layer in viewer.layers:
            if (
                tag(layer, "number") not in (None, number)
                and tag(layer, "registration") is not None
            ):
                layer.visible = False
        visibility = {
            "moving": False,
            "moving_labels": False,
            "fixed_labels": False,
            "fixed_mask": False,
            "fixed": True,
        }
        for role, visible in visibility.items():
            picked = self._inputs[role]() if role in self._inputs else None
            if picked is not None and picked in viewer.layers and picked.visible != visible:
                picked.visible = visible
        warped = layers_of_registration(viewer, number, "warped")
        if warped:
            viewer.layers.selection = {warped[-1]}


def _remove_added(
    viewer_ref: Callable[[], Viewer | None], added: Sequence[weakref.ref[Layer]]
) -> None:
    viewer = viewer_ref()
    for layer in [ref() for ref in added]:
        if viewer is not None and layer is not None and layer in viewer.layers:
            viewer.layers.remove(layer)
