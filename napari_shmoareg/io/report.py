"""A registration to a folder: images, transform, numbers, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_shmoareg.analysis.expert_figures import expert_map_figure, load_figure
from napari_shmoareg.analysis.expert_load import ExpertLoad
from napari_shmoareg.analysis.expert_maps import TokenLoad, expert_maps, times_chosen, token_loads
from napari_shmoareg.analysis.figures import jacobian_figure, overview
from napari_shmoareg.analysis.gate_values import gate_values
from napari_shmoareg.analysis.load_captions import load_caption
from napari_shmoareg.analysis.quality import Quality, measure
from napari_shmoareg.analysis.slices import middle
from napari_shmoareg.engine.registration import Registration
from napari_shmoareg.geometry import DisplacementField, Grid, VolumePair
from napari_shmoareg.io import nifti
from napari_shmoareg.io.atomic import new_folder
from napari_shmoareg.io.figure_files import write_figure
from napari_shmoareg.io.images import write_image
from napari_shmoareg.io.summary import build_report, write_summary
from napari_shmoareg.io.transforms import write_displacement, write_transform
from napari_shmoareg.io.versions import versions
from napari_shmoareg.io.weights import routing_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GATE_STEPS = 65535  # from 0 to 1: all that two bytes hold


def write_registration(
    registration: Registration,
    folder: str | Path,
    *,
    weights: str,
    figures: bool = True,
    extra: Mapping[str, Any] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Write a registration folder, whole or not at all.

    ::

        inputs/                  moving.nii.gz, fixed.nii.gz, and moving_labels.nii.gz, fixed_labels.nii.gz
                                 where there are any: the numbers and grids that were read, so that
                                 the folder opens whole in a viewer wherever it is taken
        warped.nii.gz            the moving image on the fixed image's grid
        warped_labels.nii.gz     the moving labels there (when labels were given)
        displacement.nii.gz      the whole transform as one field: fixed grid, mm, LPS, intent 1007
        transform.h5             ITK composite of affine and network field
        jacobian.nii.gz          determinant of the deformation (without the affine)
        report.json              versions, settings, affine, times, similarity, Dice, folding, loads
        experts/                 of the network's last pass.
                                 decoder-*.nii.gz: expert id + 1, one file per layer and direction;
                                 encoder-*.nii.gz: 4D, the weight of each attention head (last axis)
                                 at each token, per block and image, and how many blocks of a
                                 layer chose it; *-gate.nii.gz: 4D, what the gate gave every
                                 expert (decoder: in steps of 1/65535); each on its own grid;
                                 loads.csv
        figures/                 overview, jacobian, expert_maps, expert_loads (png)

    Parameters
    ----------
    registration : Registration
    folder : str or Path
        Must not exist, or be empty.
    weights : str
        Name of the weights, for the report and the figures.
    figures : bool
        Draw the pictures too.
    extra : mapping, optional
        Put into report.json under "extra".
    progress : callable, optional
        Called with what is being done and the fraction done, 0 to 1.

    Returns
    -------
    dict
        The content of report.json.

    Raises
    ------
    InputError
        If the folder is not empty or not writable, or the disk is full.
    """
    tell = progress or (lambda _text, _done: None)
    with new_folder(folder, size=_bytes(registration)) as place:
        tell("measuring", 0.0)
        load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
        quality = measure(registration)
        report = build_report(registration, quality, load, weights=weights, extra=extra)
        with ThreadPoolExecutor(1) as beside:
            tell("writing images", 0.4)
            drawn = figures and beside.submit(_write_figures, registration, quality, load, place / "figures", weights)
            write_inputs(registration.pair, place / "inputs")
            _write_images(registration, place)
            tell("writing expert maps", 0.7)
            _write_experts(registration, place / "experts")
            write_summary(place, report, load)
            if drawn:
                tell("drawing", 0.8)
                drawn.result()
    tell("done", 1.0)
    return report


def covering(field: DisplacementField, grid: Grid) -> Grid:
    """The field's grid, extended by whole voxels until it covers the field of view of another grid.

    ITK moves nothing outside a field, where ours goes on with the displacement of the edge.
    On the extended grid both agree, and within its own the field stays exactly what it is.
    """
    corners = field.grid.to_index(grid.corners())
    low = np.minimum(np.floor(corners.min(axis=0) + 1e-6), 0).astype(int)
    high = np.maximum(np.ceil(corners.max(axis=0) - 1e-6), np.array(field.grid.shape) - 1).astype(int)
    i, j, k = (int(n) for n in high - low + 1)
    return field.grid.crop([int(n) for n in low], (i, j, k))


def write_inputs(pair: VolumePair, place: Path) -> None:
    """Write what was registered into a new folder, each on its own grid: what `read_scene` opens again."""
    place.mkdir()
    for name, volume in pair.volumes.items():
        write_image(volume, place / f"{name}.nii.gz")


def _write_images(registration: Registration, place: Path) -> None:
    write_image(registration.warped, place / "warped.nii.gz")
    if registration.warped_labels is not None:
        write_image(registration.warped_labels, place / "warped_labels.nii.gz")
    write_image(registration.jacobian, place / "jacobian.nii.gz")
    write_displacement(registration.displacement, place / "displacement.nii.gz")
    transform, fixed = registration.transform, registration.pair.fixed.grid
    reference = None if transform.field is None else covering(transform.field, fixed)
    write_transform(transform, place / "transform.h5", reference)


def _write_experts(registration: Registration, place: Path) -> None:
    place.mkdir()
    for expert_map in expert_maps(registration):
        write_image(expert_map.volume, place / f"{expert_map.name}.nii.gz")
    loads: list[TokenLoad] = [*token_loads(registration), *times_chosen(registration)]
    for load in loads:
        nifti.write(load.values, load.grid, place / f"{load.name}.nii.gz")
    for gate in gate_values(registration):
        path = place / f"{gate.name}.nii.gz"
        if gate.place.part == "encoder":  # few, and often nearly alike: their margins would drown in steps
            nifti.write(gate.values, gate.grid, path)
            continue
        steps = np.rint(gate.values * np.float32(GATE_STEPS)).astype(np.uint16)
        nifti.write(steps, gate.grid, path, slope=1 / GATE_STEPS)


def _write_figures(registration: Registration, quality: Quality, load: ExpertLoad, place: Path, weights: str) -> None:
    place.mkdir()
    pair, settings = registration.pair, registration.settings
    about = {
        "Software": f"shmoareg {versions()['shmoareg']}",
        "Weights": weights,
        "Pair": f"moving {pair.moving.name}, fixed {pair.fixed.name}",
        "Settings": json.dumps(settings, default=str),
    }
    stages = {"moving": quality.mean_dice("affine"), "warped": quality.mean_dice("after")}
    count = 0 if quality.labels is None else len(quality.labels.both)
    over = "" if quality.labels is None or not quality.labels.missing else f" ({count} labels in both)"
    known = {column: value for column, value in stages.items() if value is not None and np.isfinite(value)}
    notes = {column: f"Dice {value:.3f}{over}" for column, value in known.items()}
    point = middle(pair.fixed)
    drawings: dict[str, Callable[[], Figure]] = {
        "overview.png": lambda: overview(registration, notes=notes, point=point),
        "jacobian.png": lambda: jacobian_figure(registration, point=point),
    }
    if registration.routing.select(part="decoder"):
        kernels = settings.get("network", {}).get("kernels")
        drawings["expert_maps.png"] = lambda: expert_map_figure(registration, kernels=kernels, point=point)
    if len(load):
        caption = load_caption(load, 1, [len(settings["passes"])], routing_of(weights) or "")
        drawings["expert_loads.png"] = lambda: load_figure(load, caption=caption)
    for name, draw in drawings.items():
        write_figure(draw(), place / name, {"Title": name.removesuffix(".png").replace("_", " "), **about})


def _bytes(registration: Registration) -> int:
    """About what the folder takes at most: images are compressed, the transform is not."""
    voxels = int(np.prod(registration.pair.fixed.grid.shape))
    inputs = sum(volume.values.nbytes for volume in registration.pair.volumes.values())
    values = {"encoder": 4 + 4, "decoder": 2 + 1}  # of the gate, and the weight or a part of the choice
    experts = sum(values[record.part] * record.routing.probabilities.numel() for record in registration.routing)
    return inputs + 4 * 6 * voxels + 24 * int(np.prod(registration.network_grid.shape)) + experts
