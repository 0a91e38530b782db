"""The network's last pass over a pair, or all of its passes, to be made again.

Ours, beyond the paper: what an expert is worth is asked by running the network with and without it.
Alignment and conforming are made once and stay as they were; so do the passes before the last,
unless they are made again too (`Replay.from_first_pass`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_shmoareg.geometry import Grid, VolumePair, field
from napari_shmoareg.model import NetworkOutput, RoutingTrace, SHMoAReg
from napari_shmoareg.model.network import Encoded
from napari_shmoareg.registration.cascade import before_last, seen_after
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
    """A registration's last pass, or all of its passes, ready to be run as they were or with
    changed gates.

    Attributes
    ----------
    network : SHMoAReg
    pair : VolumePair
    conformed : Conformed
        What the network sees, on the CPU, the moving image in the contrast that the registration
        chose.
    start : Tensor (1, 3, D, H, W) or None
        The displacement of the passes before the last, voxels of the network grid, on the network's
        device.
    passes : tuple of float
        Those that run (see `cascade`).
    diffeomorphic : bool
    smoothness : str
        Of the displacement, as the registration had it.
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
            Fixed world to moving world, mm RAS: ``registration.alignment.matrix``; None trusts the
            headers.
        settings : mapping, optional
            ``registration.settings``, or those of a report: size, diffeomorphic, contrast,
            smoothness.  What is not said is as the network's config has it.  A refinement is not
            made again.

        Raises
        ------
        InputError
            If an image cannot be registered.
        TooLargeError
            If memory would not suffice.
        """
        config, asked = network.config, dict(settings or {})
        device = next(network.parameters()).device
        check_images_memory(pair.moving.grid, pair.fixed.grid)
        conformed = conform(pair, size=asked.get("size") or config.size, affine=affine)
        check_network_memory(
            config, conformed.grid, moving=pair.moving.grid, fixed=pair.fixed.grid, device=device
        )
        empty = background_of(pair.moving), background_of(pair.fixed)
        contrast = asked.get("contrast") or "auto"
        matched = match_contrast(conformed.moving, conformed.fixed, contrast, backgrounds=empty)
        conformed = replace(conformed, moving=matched.moving)
        wanted = asked.get("diffeomorphic")
        diffeomorphic = config.diffeomorphic if wanted is None else bool(wanted)
        with _evaluating(network, conformed.grid) as device:
            images = conformed.moving.to(device), conformed.fixed.to(device)
            start, passes = before_last(network, *images, diffeomorphic=diffeomorphic)
        smoothness = asked.get("smoothness") or RegistrationSettings.smoothness
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
        """The same with the passes before the last made again: hooks on the network are felt in
        these too.

        ``replay.from_first_pass().run()`` within a block of hooks is the whole cascade under them.

        Raises
        ------
        TooLargeError
            If the device's memory ran out.
        """
        with _evaluating(self.network, self.grid) as device:
            images = self.conformed.moving.to(device), self.conformed.fixed.to(device)
            start, _ = before_last(
                self.network, *images, passes=self.passes, diffeomorphic=self.diffeomorphic
            )
        return replace(self, start=start)

    def encode(self) -> Encoded:
        """What the encoder makes of the pair in the last pass; hooks on the network are felt.

        Raises
        ------
        TooLargeError
            If the device's memory ran out.
        """
        with _evaluating(self.network, self.grid) as device:
            moving, fixed = self.conformed.moving.to(device), self.conformed.fixed.to(device)
            return self.network.encode(seen_after(moving, self._start_on(device)), fixed)

    def run(self, encoded: Encoded | None = None) -> tuple[Tensor, RoutingTrace]:
        """The whole displacement, and what the gates of the last pass chose; hooks on the network
        are felt.

        Parameters
        ----------
        encoded : Encoded, optional
            Of `encode`, where nothing in the encoder is changed: a third of the time is saved.

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
            here = encoded._replace(pyramid=[features.to(device) for features in encoded.pyramid])
            last: NetworkOutput = self.network.decode(here, diffeomorphic=self.diffeomorphic)
            start = self._start_on(device)
            displacement = (
                last.displacement if start is None else field.compose(start, last.displacement)
            )
            return smoothed(displacement, self.smoothness).cpu(), last.routing.detached()

    def _start_on(self, device: torch.device) -> Tensor | None:
        """The start where the network is by now: it may have been moved."""
        return None if self.start is None else self.start.to(device)


@contextmanager
def _evaluating(network: SHMoAReg, grid: Grid) -> Iterator[torch.device]:
    """Evaluation mode without gradients, the mode put back; memory that ran out is said in plain
    words.
    """
    device = next(network.parameters()).device
    training = network.training
    try:
        network.eval()
        with torch.inference_mode():
            yield device
    except RuntimeError as error:
        plain = too_large_for(device, grid.shape, error)
        if plain is None:
            raise
        raise plain from error
    finally:
        network.train(training)
