"""Replay: rerun the last pass of the network over a pair, or all passes.

Ours, beyond the paper: the effect of an expert is measured by running the network with and without
it.  Alignment and conforming are done once, and so are the passes before the last, unless
`Replay.from_first_pass` reruns them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.errors import InputError
from napari_shmoareg.geometry import Grid, VolumePair, field
from napari_shmoareg.model import NetworkOutput, RoutingTrace, SHMoAReg
from napari_shmoareg.model.network import Encoded
from napari_shmoareg.registration.cascade import leading_passes, warp_by
from napari_shmoareg.registration.conform import Conformed, conform
from napari_shmoareg.registration.contrast import match_contrast
from napari_shmoareg.registration.intensity import background_of
from napari_shmoareg.registration.refinement import smoothed
from napari_shmoareg.registration.resources import (
    check_images_memory,
    check_network_memory,
    too_large_for,
)
from napari_shmoareg.settings import RegistrationSettings


@dataclass(frozen=True, eq=False)
class Replay:
    """A registration whose last pass, or all passes, can be rerun, for example with changed gates.

    Attributes
    ----------
    network : SHMoAReg
    pair : VolumePair
    conformed : Conformed
        Input of the network, on the CPU, with the moving image in the contrast of the
        registration.
    start : Tensor (1, 3, D, H, W) or None
        Displacement of the passes before the last, voxels of the network grid, on the device of the
        network.
    passes : tuple of float
        Scales of the passes (see `cascade`).
    diffeomorphic : bool
    smoothness : str
        Smoothness of the displacement, as in the registration.
    """

    network: SHMoAReg
    pair: VolumePair
    conformed: Conformed
    start: Tensor | None
    passes: tuple[float, ...]
    diffeomorphic: bool
    smoothness: str = RegistrationSettings.smoothness

    @classmethod
    def of(
        cls,
        pair: VolumePair,
        network: SHMoAReg,
        *,
        affine: NDArray[np.float64] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Replay:
        """Run the earlier passes once (seconds).

        Parameters
        ----------
        pair : VolumePair
        network : SHMoAReg
            Runs on the device it is on.
        affine : (4, 4) array or None
            Fixed world to moving world, mm RAS: ``registration.alignment.matrix``; None uses the
            headers only.
        settings : mapping, optional
            ``registration.settings``, or those of a report: size, diffeomorphic, contrast,
            smoothness.  Missing values come from the config of the network.  The refinement is not
            rerun.

        Raises
        ------
        InputError
            If an image cannot be registered.
        TooLargeError
            If the memory is not sufficient.
        """
        config, values = network.config, dict(settings or {})
        if values.get("initial_deformation"):
            raise InputError(
                "This registration started from an initial deformation, which cannot be replayed;"
                " one that started from the headers or an affine was expected."
            )
        device = next(network.parameters()).device
        check_images_memory(pair.moving.grid, pair.fixed.grid)
        conformed = conform(pair, size=values.get("size") or config.size, affine=affine)
        check_network_memory(
            config, conformed.grid, moving=pair.moving.grid, fixed=pair.fixed.grid, device=device
        )
        empty = background_of(pair.moving), background_of(pair.fixed)
        contrast = values.get("contrast") or "auto"
        matched = match_contrast(conformed.moving, conformed.fixed, contrast, backgrounds=empty)
        conformed = replace(conformed, moving=matched.moving)
        integrate = values.get("diffeomorphic")
        diffeomorphic = config.diffeomorphic if integrate is None else bool(integrate)
        with _evaluating(network, conformed.grid) as device:
            images = conformed.moving.to(device), conformed.fixed.to(device)
            start, passes = leading_passes(network, *images, diffeomorphic=diffeomorphic)
        smoothness = values.get("smoothness") or RegistrationSettings.smoothness
        return cls(network, pair, conformed, start, passes, diffeomorphic, smoothness)

    @property
    def grid(self) -> Grid:
        """The network grid, in the fixed image's world."""
        return self.conformed.grid

    @property
    def affine(self) -> NDArray[np.float64]:
        """Fixed world to moving world, (4, 4), mm RAS."""
        return self.conformed.affine

    def from_first_pass(self) -> Replay:
        """Rerun the passes before the last, with the hooks on the network.

        ``replay.from_first_pass().run()`` under hooks is the whole cascade under them.

        Raises
        ------
        TooLargeError
            If the device's memory ran out.
        """
        with _evaluating(self.network, self.grid) as device:
            images = self.conformed.moving.to(device), self.conformed.fixed.to(device)
            start, _ = leading_passes(
                self.network, *images, passes=self.passes, diffeomorphic=self.diffeomorphic
            )
        return replace(self, start=start)

    def encode(self) -> Encoded:
        """Run the encoder in the last pass, with the hooks on the network.

        Raises
        ------
        TooLargeError
            If the device's memory ran out.
        """
        with _evaluating(self.network, self.grid) as device:
            moving, fixed = self.conformed.moving.to(device), self.conformed.fixed.to(device)
            return self.network.encode(warp_by(moving, self._start_on(device)), fixed)

    def run(self, encoded: Encoded | None = None) -> tuple[Tensor, RoutingTrace]:
        """Run the last pass, with the hooks on the network; returns the whole displacement.

        Parameters
        ----------
        encoded : Encoded, optional
            From `encode`, if the encoder is unchanged: saves a third of the time.

        Returns
        -------
        displacement : Tensor (1, 3, D, H, W), voxels of the network grid, on the CPU
        routing : RoutingTrace
            Detached, on the CPU.

        Raises
        ------
        TooLargeError
            If the device's memory ran out.
        """
        encoded = self.encode() if encoded is None else encoded
        with _evaluating(self.network, self.grid) as device:
            on_device = encoded._replace(
                pyramid=[features.to(device) for features in encoded.pyramid]
            )
            last: NetworkOutput = self.network.decode(on_device, diffeomorphic=self.diffeomorphic)
            start = self._start_on(device)
            displacement = (
                last.displacement if start is None else field.compose(start, last.displacement)
            )
            return smoothed(displacement, self.smoothness).cpu(), last.routing.detached()

    def _start_on(self, device: torch.device) -> Tensor | None:
        """Return the start on the current device of the network."""
        return None if self.start is None else self.start.to(device)


@contextmanager
def _evaluating(network: SHMoAReg, grid: Grid) -> Iterator[torch.device]:
    """Set evaluation mode without gradients, then restore; convert out-of-memory errors."""
    device = next(network.parameters()).device
    training = network.training
    try:
        network.eval()
        with torch.inference_mode():
            yield device
    except RuntimeError as error:
        too_large = too_large_for(device, grid.shape, error)
        if too_large is None:
            raise
        raise too_large from error
    finally:
        network.train(training)
