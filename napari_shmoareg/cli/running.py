"""From a pair and the options of a command to a registration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from napari_shmoareg.cli.options import Affine, Contrast, Device, Keep, Similarity, Smoothness
from napari_shmoareg.cli.progress import Report
from napari_shmoareg.io.weights import chosen_device, chosen_weights

if TYPE_CHECKING:
    from napari_shmoareg.engine.registration import Registration
    from napari_shmoareg.engine.replay import Replay
    from napari_shmoareg.geometry import VolumePair
    from napari_shmoareg.model import SHMoAReg


@dataclass(frozen=True)
class Running:
    """How a pair is registered: the options that several commands share.

    Parameters
    ----------
    weights : str or None
        Shipped name or path; None for the shipped ones.
    affine : Affine
    diffeomorphic : bool or None
        None: as the weights say.
    device : Device
    size : int, "native" or None
        None: as the weights say.
    refine : int
        Steps on the pair itself.
    similarity : Similarity
    contrast : Contrast
    smoothness : Smoothness
    keep : Keep
        Which stage is the result.
    """

    weights: str | None = None
    affine: Affine = Affine.auto
    diffeomorphic: bool | None = None
    device: Device = Device.auto
    size: int | str | None = None
    refine: int = 0
    similarity: Similarity = Similarity.auto
    contrast: Contrast = Contrast.auto
    smoothness: Smoothness = Smoothness.accurate
    keep: Keep = Keep.best

    def network(self) -> tuple[str, SHMoAReg]:
        """The name of the weights and the network, on its device.

        Raises
        ------
        InputError
            If there are no such weights or no such device.
        """
        from napari_shmoareg.io.checkpoint import load_network

        device = chosen_device(self.device.value)
        name, _ = chosen_weights(self.weights, device)
        return name, load_network(name, device=device)

    def replay(self, pair: VolumePair, network: SHMoAReg, report: Report) -> Replay:
        """Align a pair and make its `Replay`, telling `report` what is done."""
        from napari_shmoareg.engine.affine import align
        from napari_shmoareg.engine.replay import Replay

        report("aligning", 0.0)
        alignment = align(pair, self.affine.value)
        report("deforming", 0.05)
        settings = {"size": self.size, "diffeomorphic": self.diffeomorphic, "contrast": self.contrast.value}
        return Replay.of(pair, network, affine=alignment.matrix, settings=settings)

    def register(self, pair: VolumePair, network: SHMoAReg | None, report: Report) -> Registration:
        """Register a pair, by a network or without one, telling `report` how far it is."""
        from napari_shmoareg.engine.registration import register

        why = "none, as requested"
        if network is not None:
            _, why = chosen_weights(self.weights, chosen_device(self.device.value))
        registration = register(
            pair,
            network,
            affine=self.affine.value,
            size=self.size,
            diffeomorphic=self.diffeomorphic,
            device=self.device.value,
            refine=self.refine,
            similarity=self.similarity.value,
            contrast=self.contrast.value,
            smoothness=self.smoothness.value,
            keep=self.keep.value,
            progress=report,
        )
        return replace(registration, choices={"weights": why, **registration.choices})
