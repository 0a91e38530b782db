"""register(): a pair in, a registration out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from napari_shmoareg.engine.affine import Alignment, align
from napari_shmoareg.engine.conform import Conformed, check_size, conform
from napari_shmoareg.engine.memory import check_images_memory, check_network_memory, too_large_for
from napari_shmoareg.engine.similarity import Similarity, similarity
from napari_shmoareg.geometry import DisplacementField, Grid, InputError, Transform, Volume, VolumePair
from napari_shmoareg.model import NetworkOutput, RoutingTrace, SHMoAReg

Progress = Callable[[str, float], None]

MUCH_FOLDING = 1.0  # percent of voxels
NOTABLE = 0.002  # a smaller loss of correlation is no news
PHASES = ("align", "conform", "network", "warp", "measure")


@dataclass(frozen=True, eq=False)
class Registration:
    """The result: what widgets and exports are handed.

    Attributes
    ----------
    pair : VolumePair
        As given.
    transform : Transform
        Fixed world to moving world, T(x) = A(x + d(x)), mm RAS; d on the network grid.
    warped : Volume
        The moving image on the fixed image's own grid, by one interpolation of the original; float32.
    warped_labels : Volume or None
        The moving labels likewise, nearest neighbour, their dtype; None without such.
    displacement : DisplacementField
        The whole transform, T(x) - x, on the fixed grid, mm RAS.
    jacobian : Volume
        det(I + dd/dx) of the deformation alone (without the affine), on the fixed grid; 0 or less is folding.
    routing : RoutingTrace
        What every gate chose, detached, on the CPU.
    network_grid : Grid
        Where the network worked, in the fixed world.
    alignment : Alignment
        The affine, and why it is what it is.
    similarity : dict of Similarity or None
        "before" (the headers alone), "affine", "after"; None where the images did not meet.
    seconds : dict of float
        Per phase.
    settings : dict
        What was asked for and what it came to; plain values.
    """

    pair: VolumePair
    transform: Transform
    warped: Volume
    warped_labels: Volume | None
    displacement: DisplacementField
    jacobian: Volume
    routing: RoutingTrace
    network_grid: Grid
    alignment: Alignment
    similarity: dict[str, Similarity | None]
    seconds: dict[str, float]
    settings: dict[str, Any]

    @property
    def folding_percent(self) -> float:
        """Share of the fixed grid's voxels, in percent, whose Jacobian is 0 or less."""
        return 100 * float((self.jacobian.values <= 0).mean())

    @property
    def warnings(self) -> list[str]:
        """What a person should know before trusting the result; empty where nothing was noticed."""
        found = []
        placed, warped = self.similarity["affine"], self.similarity["after"]
        if placed and warped and warped.ncc < placed.ncc - NOTABLE and not warped.nmi > placed.nmi:
            found.append(
                f"The deformation made the images less alike than the alignment alone (correlation {placed.ncc:.3f} to "
                f"{warped.ncc:.3f}, mutual information {placed.nmi:.3f} to {warped.nmi:.3f}). The weights may not fit "
                "such images: try another --size or other --weights, or keep the affine of report.json alone."
            )
        if self.folding_percent > MUCH_FOLDING:
            found.append(
                f"The deformation folds in {self.folding_percent:.2f} % of the voxels (jacobian.nii.gz shows where). "
                "With --diffeomorphic it folds less."
            )
        return found


def register(
    pair: VolumePair,
    network: SHMoAReg,
    *,
    affine: str = "auto",
    size: int | str | None = None,
    diffeomorphic: bool | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Registration:
    """Register the moving image of a pair onto the fixed one.

    Parameters
    ----------
    pair : VolumePair
        Any orientation, spacing, dtype, size and field of view.
    network : SHMoAReg
        Is moved to the device and stays there.
    affine : {"auto", "rigid", "affine", "none"}
        Alignment before the network (see `align`).
    size : int, "native" or None
        Voxels along the longest axis of the network grid (see `network_grid`); None takes
        what the weights are meant for.
    diffeomorphic : bool or None
        None: as the network's config says.
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where there is one.
    progress : callable or None
        Called with a phase ("align", "conform", "network", "warp", "measure") and a fraction
        of it; what it raises ends the work and comes out here.

    Returns
    -------
    Registration

    Raises
    ------
    InputError
        If an image or an option is not what it has to be.
    NoOverlapError
        If the images do not meet after the alignment.
    TooLargeError
        If memory would not suffice.
    """
    config = network.config
    where = find_device(device)
    size = config.size if size is None else size
    diffeomorphic = config.diffeomorphic if diffeomorphic is None else diffeomorphic
    check_size(size)
    grid = pair.fixed.grid
    check_images_memory(pair.moving.grid, grid)
    seconds: dict[str, float] = {}
    phase = partial(_phase, seconds, progress)
    with phase("align"):
        alignment = align(pair, affine, progress=progress)
    with phase("conform"):
        conformed = conform(pair, size=size, affine=alignment.matrix)
    with phase("network"):
        check_network_memory(config, conformed.grid, moving=pair.moving.grid, fixed=grid, device=where)
        output = _run(network, conformed, diffeomorphic, where)
        transform = conformed.transform(output.displacement)
        routing = output.routing.detached()
    with phase("warp"):
        deformation = Transform(np.eye(4), transform.field).total(grid)  # asked of the network's field once
        displacement = deformation.after(alignment.matrix)
        warped = displacement.warp(pair.moving)
        warped_labels = None if pair.moving_labels is None else displacement.warp(pair.moving_labels)
    with phase("measure"):
        jacobian = Volume(deformation.jacobian(), grid, "jacobian")
        stages = {"before": Transform(np.eye(4)), "affine": Transform(alignment.matrix), "after": transform}
        alike = {name: similarity(pair, stage) for name, stage in stages.items()}
    return Registration(
        pair=pair,
        transform=transform,
        warped=warped,
        warped_labels=warped_labels,
        displacement=displacement,
        jacobian=jacobian,
        routing=routing,
        network_grid=conformed.grid,
        alignment=alignment,
        similarity=alike,
        seconds=seconds,
        settings={
            "affine": affine,
            "size": size,
            "diffeomorphic": diffeomorphic,
            "device": str(where),
            "network": config.to_dict(),
        },
    )


def find_device(name: str) -> torch.device:
    """The device of a name.

    Raises
    ------
    InputError
        If the name is none of "auto", "cpu" and "cuda", or "cuda" is asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"The device is one of auto, cpu, cuda; got {name!r}.")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        built = "this build of PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch finds no CUDA GPU"
        raise InputError(
            f"The device cuda was asked for, but {built}. Use --device cpu (in Python: device='cpu'), or install a "
            "CUDA build of PyTorch on a machine with an NVIDIA GPU."
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _run(network: SHMoAReg, conformed: Conformed, diffeomorphic: bool, device: torch.device) -> NetworkOutput:
    """One forward pass in evaluation mode; the network's mode is put back."""
    training = network.training
    try:
        network.to(device).eval()
        with torch.inference_mode():
            return network(conformed.moving.to(device), conformed.fixed.to(device), diffeomorphic=diffeomorphic)
    except RuntimeError as error:
        plain = too_large_for(device, conformed.grid.shape, error)
        if plain is None:
            raise
        raise plain from error
    finally:
        network.train(training)


@contextmanager
def _phase(seconds: dict[str, float], progress: Progress | None, name: str) -> Iterator[None]:
    """Tell where the work is, and keep the time."""
    begin = time.perf_counter()
    if progress is not None:
        progress(name, 0.0)
    yield
    seconds[name] = time.perf_counter() - begin
    if progress is not None:
        progress(name, 1.0)
