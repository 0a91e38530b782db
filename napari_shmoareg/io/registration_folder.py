"""Writing and reading of registration folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.experts.load import ExpertLoad
from napari_shmoareg.experts.maps import expert_maps, gate_values, times_chosen, token_loads
from napari_shmoareg.figures.experts import expert_map_figure, load_caption, load_figure
from napari_shmoareg.figures.panels import middle
from napari_shmoareg.figures.registration import jacobian_figure, overview
from napari_shmoareg.geometry import DisplacementField, Grid, Volume, VolumePair
from napari_shmoareg.io import nifti
from napari_shmoareg.io.files import new_folder, write_figure
from napari_shmoareg.io.images import REPORT, read_image, write_image
from napari_shmoareg.io.label_names import reported_names
from napari_shmoareg.io.machine import versions
from napari_shmoareg.io.model_card import routing_of
from napari_shmoareg.io.report import (
    build_report,
    read_registration_summary,
    write_summary,
)
from napari_shmoareg.io.transforms import read_transform, write_displacement, write_transform
from napari_shmoareg.io.untrusted import inside, names_input, user_path
from napari_shmoareg.metrics.measure import Quality, measure
from napari_shmoareg.model import RoutedLayer, Routing, RoutingTrace
from napari_shmoareg.registration.affine import Alignment
from napari_shmoareg.registration.agreement import Agreement
from napari_shmoareg.registration.register import Registration
from napari_shmoareg.registration.similarity import Similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


GATE_STEPS = 65535  # from 0 to 1, as two bytes allow


def write_registration(
    registration: Registration,
    folder: str | Path,
    *,
    weights: str,
    figures: bool = True,
    extra: Mapping[str, Any] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Write a registration folder, atomically.

    ::

        inputs/                  moving.nii.gz, fixed.nii.gz, and if there are labels
                                 moving_labels.nii.gz, fixed_labels.nii.gz, fixed_mask.nii.gz,
                                 with the voxels and grids that were read: the folder is
                                 self-contained
        warped.nii.gz            the moving image on the fixed image's grid
        warped_labels.nii.gz     the warped moving labels (if labels were given)
        displacement.nii.gz      the total transform as one field: fixed grid, mm, LPS, intent 1007
        transform.h5             ITK composite of affine and network field
        jacobian.nii.gz          determinant of the deformation (without the affine)
        report.json              versions, settings, affine, times, similarity, Dice, folding, loads
        experts/                 of the network's last pass, each file on its own grid.
                                 decoder-*.nii.gz: expert id + 1, one file per layer and direction;
                                 encoder-*.nii.gz: 4D, the weight of each attention head (last axis)
                                 at each token, per block and image, and how many blocks of a
                                 layer chose it; *-gate.nii.gz: 4D, the gate value of every
                                 expert (decoder: in steps of 1/65535);
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
        Write figures too.
    extra : mapping, optional
        Stored in report.json under "extra".
    progress : callable, optional
        Called with the title of the current step and the fraction done, 0 to 1.

    Returns
    -------
    dict
        The content of report.json.

    Raises
    ------
    InputError
        If the folder is not empty or not writable, or the disk is full.
    """
    report_progress = progress or (lambda _text, _done: None)
    with new_folder(folder, size=_bytes(registration)) as target:
        report_progress("measuring", 0.0)
        load = ExpertLoad.of(registration.routing, registration.network_grid.shape)
        quality = measure(registration)
        report = build_report(registration, quality, load, weights=weights, extra=extra)
        with ThreadPoolExecutor(1) as executor:
            report_progress("writing images", 0.4)
            drawing = figures and executor.submit(
                _write_figures, registration, quality, load, target / "figures", weights
            )
            write_inputs(registration.pair, target / "inputs")
            _write_images(registration, target)
            report_progress("writing expert maps", 0.7)
            _write_experts(registration, target / "experts")
            write_summary(target, report, load)
            if drawing:
                report_progress("drawing", 0.8)
                drawing.result()
    report_progress("done", 1.0)
    return report


def extend_to_cover(field: DisplacementField, grid: Grid) -> Grid:
    """Extend the field's grid by whole voxels until it covers the field of view of another grid.

    Outside a field ITK applies no displacement, whereas ours extends that of the edge. On the
    extended grid both agree, and the field within its own grid does not change.
    """
    corners = field.grid.to_index(grid.corners())
    low = np.minimum(np.floor(corners.min(axis=0) + 1e-6), 0).astype(int)
    high = np.maximum(np.ceil(corners.max(axis=0) - 1e-6), np.array(field.grid.shape) - 1).astype(
        int
    )
    i, j, k = (int(n) for n in high - low + 1)
    return field.grid.crop([int(n) for n in low], (i, j, k))


def write_inputs(pair: VolumePair, folder: Path) -> None:
    """Write the registered images and labels into a new folder, each on its own grid."""
    folder.mkdir()
    for name, volume in pair.volumes.items():
        write_image(volume, folder / f"{name}.nii.gz")


def _write_images(registration: Registration, folder: Path) -> None:
    write_image(registration.warped, folder / "warped.nii.gz")
    if registration.warped_labels is not None:
        write_image(registration.warped_labels, folder / "warped_labels.nii.gz")
    write_image(registration.jacobian, folder / "jacobian.nii.gz")
    write_displacement(registration.displacement, folder / "displacement.nii.gz")
    transform, fixed = registration.transform, registration.pair.fixed.grid
    reference = None if transform.field is None else extend_to_cover(transform.field, fixed)
    write_transform(transform, folder / "transform.h5", reference)


def _write_experts(registration: Registration, folder: Path) -> None:
    folder.mkdir()
    for expert_map in expert_maps(registration):
        write_image(expert_map.volume, folder / f"{expert_map.name}.nii.gz")
    for load in (*token_loads(registration), *times_chosen(registration)):
        nifti.write(load.values, load.grid, folder / f"{load.name}.nii.gz")
    for gate in gate_values(registration):
        path = folder / f"{gate.name}.nii.gz"
        # few values, often nearly equal: quantisation would hide their differences
        if gate.part == "encoder":
            nifti.write(gate.values, gate.grid, path)
            continue
        steps = np.rint(gate.values * np.float32(GATE_STEPS)).astype(np.uint16)
        nifti.write(steps, gate.grid, path, slope=1 / GATE_STEPS)


def _write_figures(
    registration: Registration, quality: Quality, load: ExpertLoad, folder: Path, weights: str
) -> None:
    folder.mkdir()
    pair, settings = registration.pair, registration.settings
    metadata = {
        "Software": f"shmoareg {versions()['shmoareg']}",
        "Weights": weights,
        "Pair": f"moving {pair.moving.name}, fixed {pair.fixed.name}",
        "Settings": json.dumps(settings, default=str),
    }
    stages = {"moving": quality.mean_dice("affine"), "warped": quality.mean_dice("after")}
    count = 0 if quality.labels is None else len(quality.labels.both)
    count_note = (
        "" if quality.labels is None or not quality.labels.missing else f" ({count} labels in both)"
    )
    finite = {
        column: value
        for column, value in stages.items()
        if value is not None and np.isfinite(value)
    }
    notes = {column: f"Dice {value:.3f}{count_note}" for column, value in finite.items()}
    point = middle(pair.fixed)
    drawings: dict[str, Callable[[], Figure]] = {
        "overview.png": lambda: overview(registration, notes=notes, point=point),
        "jacobian.png": lambda: jacobian_figure(registration, point=point),
    }
    if registration.routing.select(part="decoder"):
        kernels = settings.get("network", {}).get("kernels")
        drawings["expert_maps.png"] = lambda: expert_map_figure(
            registration, kernels=kernels, point=point
        )
    if len(load):
        caption = load_caption(load, 1, [len(settings["passes"])], routing_of(weights) or "")
        drawings["expert_loads.png"] = lambda: load_figure(load, caption=caption)
    for name, draw in drawings.items():
        write_figure(
            draw(),
            folder / name,
            {"Title": name.removesuffix(".png").replace("_", " "), **metadata},
        )


def _bytes(registration: Registration) -> int:
    """Upper estimate of the size of the folder: images are compressed, the transform is not."""
    voxels = int(np.prod(registration.pair.fixed.grid.shape))
    inputs = sum(volume.values.nbytes for volume in registration.pair.volumes.values())
    # bytes of the gate value, and of the weight or a share of the choice
    values = {"encoder": 4 + 4, "decoder": 2 + 1}
    experts = sum(
        values[record.part] * record.routing.probabilities.numel()
        for record in registration.routing
    )
    return inputs + 4 * 6 * voxels + 24 * int(np.prod(registration.network_grid.shape)) + experts


# voxels by which a grid in a file may differ from the one in the report: files store float32
GRID_TOLERANCE = 0.01

ROLES = {"moving", "fixed", "moving_labels", "fixed_labels", "fixed_mask"}
REQUIRED = (
    "similarity",
    "dice",
    "assd_mm",
    "hd95_mm",
    "jacobian",
    "displacement_mm",
    "seconds",
    "warnings",
    "settings",
)


@names_input
def read_registration(folder: str | Path) -> Registration:
    """Read a registration from a folder, with everything that can be displayed.

    Parameters
    ----------
    folder : str or Path
        A folder written by `write_registration`.

    Returns
    -------
    Registration
        With `report`, `weights` and `folder`. Grids are exactly those of the report. The routing
        has no gate values (NaN) if the folder is older than these files.

    Raises
    ------
    InputError
        If it is not a registration folder, is older than the storing of input images, or a file is
        missing, damaged or from another registration.
    """
    folder = user_path(folder)
    summary = read_registration_summary(folder)
    report, load = summary.report, summary.load
    try:
        grids = {role: _grid(about) for role, about in report["pair"].items() if about}
        names = {role: str(about["name"]) for role, about in report["pair"].items() if about}
        network, weights = _grid(report["network_grid"]), str(report["weights"])
        if not {"moving", "fixed"} <= set(names) <= ROLES or not all(
            name in report for name in REQUIRED
        ):
            raise KeyError(f"'pair', or one of {', '.join(REQUIRED)}")
        if not all(1 <= load.top_k(gate) <= len(load.counts[gate]) for gate in load):
            raise ValueError("the counts of a gate are not those of its cells")
        facts = _fields(report)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{folder / REPORT} is damaged ({error!r:.200}). Register the pair again."
        ) from error
    inputs = {role: _input(folder, role, grid, names[role]) for role, grid in grids.items()}
    label_names = reported_names(report)
    for role in {"moving_labels", "fixed_labels"} & set(inputs):
        inputs[role] = replace(inputs[role], label_names=label_names)
    labelled = inputs.get("moving_labels")
    fixed = inputs["fixed"].grid
    return Registration(
        pair=VolumePair(**inputs),
        transform=read_transform(_require_file(folder, "transform.h5")),
        warped=_volume(folder, "warped", fixed, name=inputs["moving"].name),
        warped_labels=labelled
        and replace(
            _volume(folder, "warped_labels", fixed, name=labelled.name, labels=True),
            label_names=label_names,
        ),
        displacement=_displacement(folder, fixed),
        jacobian=_volume(folder, "jacobian", fixed, name="jacobian"),
        routing=_routing(folder, network, load),
        network_grid=network,
        weights=weights,
        report=report,
        folder=folder.resolve(),
        **facts,
    )


read_scene = read_registration  # name in earlier versions


def _fields(report: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Registration` from report.json; NaN for missing numbers."""

    def numbers(kind: Any, values: Mapping[str, Any] | None) -> Any:
        found = values or {}
        return kind(*(nan if found.get(n) is None else float(found[n]) for n in kind._fields))

    affine, seconds = report.get("affine") or {}, dict(report["seconds"])
    return {
        "alignment": Alignment(
            matrix=np.array(affine.get("matrix", np.eye(4)), dtype=np.float64).reshape(4, 4),
            mode=str(affine.get("mode", "")),
            reason=str(affine.get("reason", "")),
            before=numbers(Agreement, affine.get("agreement_before")),
            after=numbers(Agreement, affine.get("agreement_after")),
            seconds=seconds.get("align", nan),
            initial=None
            if affine.get("initial") is None
            else np.array(affine["initial"], dtype=np.float64).reshape(4, 4),
        ),
        "similarity": {
            stage: numbers(Similarity, values) for stage, values in report["similarity"].items()
        },
        "kept": str(report.get("kept", "")),
        "choices": dict(report.get("choices") or {}),
        "seconds": seconds,
        "settings": dict(report["settings"]),
    }


def _grid(about: Mapping[str, Any]) -> Grid:
    i, j, k = about["shape"]
    return Grid((i, j, k), np.array(about["affine"], dtype=np.float64))


def _require_file(folder: Path, name: str) -> Path:
    """Path of a required file."""
    if not inside(folder, name).is_file():
        raise InputError(
            f"{folder} is incomplete: {name} is missing. Copy the folder again, or register the"
            " pair again with 'shmoareg register'."
        )
    return folder / name


def _input(folder: Path, role: str, grid: Grid, name: str) -> Volume:
    """Read a registered image or its labels."""
    if not (folder / "inputs").is_dir():
        raise InputError(
            f"{folder} contains a registration without its input images (no inputs/{role}.nii.gz):"
            " it was written by an earlier version. Register the pair again to get a folder that"
            " opens; or open the two images, and warped.nii.gz of this folder, as files."
        )
    labels = role not in ("moving", "fixed")
    return _volume(folder, f"inputs/{role}", grid, name=name, labels=labels)


def _volume(folder: Path, path: str, grid: Grid, *, name: str, labels: bool = False) -> Volume:
    """Read a volume, check its grid against the given one, and put it exactly on that grid."""
    file = _require_file(folder, f"{path}.nii.gz")
    volume = read_image(file, labels=labels)
    _check_grid(file, volume.grid, grid)
    return replace(volume, grid=grid, name=name)


def _check_grid(file: Path, found: Grid, expected: Grid) -> None:
    if not found.same_space(expected, tolerance=GRID_TOLERANCE):
        raise InputError(
            f"{file} is not on the grid that report.json names (shape {found.shape};"
            f" {expected.shape} was expected): it is from another registration, or was changed."
            " Copy the folder again, or register the pair again."
        )


def _displacement(folder: Path, grid: Grid) -> DisplacementField:
    file = _require_file(folder, "displacement.nii.gz")
    field = read_transform(file).field
    if field is None:
        raise InputError(
            f"{file} contains no displacement. Copy the folder again, or register the pair again."
        )
    _check_grid(file, field.grid, grid)
    return replace(field, grid=grid)


def _routing(folder: Path, network: Grid, load: ExpertLoad) -> RoutingTrace:
    """Choices of the gates, with their values unless the folder is older than these files."""
    has_values = any((folder / f"experts/{gate}-gate.nii.gz").exists() for gate in load)
    layers = []
    for gate, counts in load.counts.items():
        number, values = len(counts), None
        if has_values:
            values, stride = _per_expert(folder, network, f"{gate}-gate", number)
        if gate.part == "encoder":
            shares, stride = _per_expert(folder, network, str(gate), number)
            experts = np.argsort(-shares, axis=-1, kind="stable")[..., : load.top_k(gate)]
            weights = _tensor(np.take_along_axis(shares, experts, axis=-1))
        else:
            experts, stride = _first_choice(folder, network, str(gate), number)
            weights = _nan_tensor(experts.shape)
            if values is not None:
                weights = _tensor(np.take_along_axis(values, experts, axis=-1))
        shape = (*experts.shape[:3], number)
        probabilities = _nan_tensor(shape) if values is None else _tensor(values)
        routing = Routing(probabilities, _tensor(experts.astype(np.uint8)), weights)
        layers.append(RoutedLayer(gate, stride, routing))
    return RoutingTrace(tuple(layers))


def _tensor(cells: NDArray) -> torch.Tensor:
    """(I, J, K, N) as (1, N, I, J, K)."""
    return torch.from_numpy(np.moveaxis(cells, -1, 0))[None]


def _nan_tensor(shape: tuple[int, ...]) -> torch.Tensor:
    """NaN tensor for missing (I, J, K, N) values, without allocating memory."""
    return torch.full((1, 1, 1, 1, 1), torch.nan).expand(1, shape[3], *shape[:3])


def _per_expert(folder: Path, network: Grid, name: str, number: int) -> tuple[NDArray, int]:
    """Read the values (I, J, K, N) of a gate per cell and expert, and the stride of the cells."""
    file = _require_file(folder, f"experts/{name}.nii.gz")
    image, affine = nifti.load(file)
    values = nifti.values_of(image)
    if values.ndim != 4 or values.shape[3] != number:
        raise InputError(
            f"{file} has the shape {values.shape}; four axes were expected, the last one with the"
            f" {number} experts of {name.removesuffix('-gate')}. Copy the folder again, or register"
            " the pair again."
        )
    grid = Grid((values.shape[0], values.shape[1], values.shape[2]), affine)
    return values.astype(np.float32, copy=False), _stride(file, grid, network)


def _first_choice(folder: Path, network: Grid, name: str, number: int) -> tuple[NDArray, int]:
    """Read the expert (I, J, K, 1), from 0, chosen by each cell of a decoder gate; and the
    stride.
    """
    file = _require_file(folder, f"experts/{name}.nii.gz")
    volume = read_image(file, labels=True)
    low, high = int(volume.values.min(initial=1)), int(volume.values.max(initial=1))
    if not 1 <= low <= high <= number:
        raise InputError(
            f"{file} contains values from {low} to {high}; experts from 1 to {number} were"
            " expected. Copy the folder again, or register the pair again."
        )
    return volume.values.astype(np.int64)[..., None] - 1, _stride(file, volume.grid, network)


def _stride(file: Path, found: Grid, network: Grid) -> int:
    """Edge length of a cell, in voxels of the network grid."""
    stride = max(1, round(float(np.mean(np.array(found.spacing) / network.spacing))))
    _check_grid(file, found, network.coarsen(stride))
    return stride
