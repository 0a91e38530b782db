"""A registration folder back as what a viewer shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_shmoareg.analysis.expert_load import Place
from napari_shmoareg.analysis.expert_maps import ExpertMap, TokenLoad
from napari_shmoareg.analysis.gate_values import GateValues
from napari_shmoareg.analysis.scene import Scene
from napari_shmoareg.geometry import DisplacementField, Grid, InputError, Volume, VolumePair
from napari_shmoareg.io import nifti
from napari_shmoareg.io.contents import REPORT
from napari_shmoareg.io.images import read_image
from napari_shmoareg.io.summary import place_in, read_registration_summary
from napari_shmoareg.io.transforms import read_transform
from napari_shmoareg.io.untrusted import inside, names_input, user_path

SAME = 0.01  # voxels by which a place in a file may differ from the one in the report: files hold float32

ROLES = {"moving", "fixed", "moving_labels", "fixed_labels"}
SHOWN = ("similarity", "dice", "assd_mm", "hd95_mm", "jacobian", "displacement_mm", "seconds", "warnings", "settings")


@names_input
def read_scene(folder: str | Path) -> Scene:
    """Read everything of a registration that can be looked at.

    Parameters
    ----------
    folder : str or Path
        As `write_registration` made it.

    Returns
    -------
    Scene
        With `folder`, and without `registration`.  Grids are those of the report, to the last digit.
        Without `gates` if the folder was written before these were kept.

    Raises
    ------
    InputError
        If it is no such folder, was written before the images were kept with it, or a file is
        missing, damaged or of another registration.
    """
    folder = user_path(folder)
    report = read_registration_summary(folder).report
    try:
        grids = {role: _grid(about) for role, about in report["pair"].items() if about}
        names = {role: str(about["name"]) for role, about in report["pair"].items() if about}
        network, weights = _grid(report["network_grid"]), str(report["weights"])
        if not {"moving", "fixed"} <= set(names) <= ROLES or not all(name in report for name in SHOWN):
            raise KeyError(f"'pair', or one of {', '.join(SHOWN)}")
        places = [(place_in(load), len(load["counts"])) for load in report["expert_loads"]]
        chosen = [round(sum(load["counts"]) / load["cells"]) for load in report["expert_loads"]]
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{folder / REPORT} is damaged ({error!r:.200}). Register the pair again.") from error
    inputs = {role: _input(folder, role, grid, names[role]) for role, grid in grids.items()}
    labelled = inputs.get("moving_labels")
    fixed = inputs["fixed"].grid
    return Scene(
        pair=VolumePair(**inputs),
        warped=_volume(folder, "warped", fixed, name=inputs["moving"].name),
        warped_labels=labelled and _volume(folder, "warped_labels", fixed, name=labelled.name, labels=True),
        displacement=_displacement(folder, fixed),
        transform=read_transform(_file(folder, "transform.h5")),
        jacobian=_volume(folder, "jacobian", fixed, name="jacobian"),
        expert_maps=list(_expert_maps(folder, network, places)),
        token_loads=list(_token_loads(folder, network, places)),
        times_chosen=list(_times_chosen(folder, network, places)),
        report=report,
        weights=weights,
        folder=folder.resolve(),
        gates=_gates(folder, network, places, chosen),
    )


def _grid(about: Mapping[str, Any]) -> Grid:
    i, j, k = about["shape"]
    return Grid((i, j, k), np.array(about["affine"], dtype=np.float64))


def _named(place: Place) -> str:
    """As in the file's name: ``encoder-1-0-moving``."""
    return "-".join(str(part) for part in place if part is not None)


def _file(folder: Path, name: str) -> Path:
    """A file that has to be there."""
    if not inside(folder, name).is_file():
        raise InputError(
            f"{folder} is not whole: {name} is missing. Copy the folder again, or register the pair again with "
            "'shmoareg register'."
        )
    return folder / name


def _input(folder: Path, role: str, grid: Grid, name: str) -> Volume:
    """An image or labels that were registered."""
    if not (folder / "inputs").is_dir():
        raise InputError(
            f"{folder} holds a registration without the images it was made from (no inputs/{role}.nii.gz): it was "
            "written by an earlier version. Register the pair again, and the new folder opens as a whole; or open the "
            "two images, and warped.nii.gz of this folder, as files."
        )
    return _volume(folder, f"inputs/{role}", grid, name=name, labels=role.endswith("labels"))


def _volume(folder: Path, path: str, grid: Grid, *, name: str, labels: bool = False) -> Volume:
    """A file that stands on a known grid, on exactly this."""
    file = _file(folder, f"{path}.nii.gz")
    volume = read_image(file, labels=labels)
    _check_grid(file, volume.grid, grid)
    return replace(volume, grid=grid, name=name)


def _check_grid(file: Path, found: Grid, expected: Grid) -> None:
    if not found.same_space(expected, tolerance=SAME):
        raise InputError(
            f"{file} does not stand where report.json says (shape {found.shape}; {expected.shape} was expected): it is "
            "of another registration, or was changed. Copy the folder again, or register the pair again."
        )


def _displacement(folder: Path, grid: Grid) -> DisplacementField:
    file = _file(folder, "displacement.nii.gz")
    field = read_transform(file).field
    if field is None:
        raise InputError(f"{file} holds no displacement. Copy the folder again, or register the pair again.")
    _check_grid(file, field.grid, grid)
    return replace(field, grid=grid)


def _cells(file: Path, found: Grid, network: Grid) -> tuple[Grid, int]:
    """The grid of cells that a file stands on, and how many voxels of the network grid a cell has along each axis."""
    stride = max(1, round(float(np.mean(np.array(found.spacing) / network.spacing))))
    grid = network.coarsen(stride)
    _check_grid(file, found, grid)
    return grid, stride


def _expert_maps(folder: Path, network: Grid, places: Sequence[tuple[Place, int]]) -> Iterator[ExpertMap]:
    for place, number in places:
        if place.part == "decoder":
            name = _named(place)
            file = _file(folder, f"experts/{name}.nii.gz")
            volume = read_image(file, labels=True)
            if volume.values.size and not 0 <= int(volume.values.min()) <= int(volume.values.max()) <= number:
                raise InputError(
                    f"{file} holds numbers from {volume.values.min()} to {volume.values.max()}; experts from 1 to "
                    f"{number}, or 0, were expected. Copy the folder again, or register the pair again."
                )
            grid, stride = _cells(file, volume.grid, network)
            values = volume.values.astype(np.uint8)
            yield ExpertMap(name, Volume(values, grid, name, is_labels=True), place, stride, number)


def _token_loads(folder: Path, network: Grid, places: Sequence[tuple[Place, int]]) -> Iterator[TokenLoad]:
    for place, number in places:
        if place.part == "encoder":
            yield _load(folder, network, place, number, _named(place))


def _times_chosen(folder: Path, network: Grid, places: Sequence[tuple[Place, int]]) -> Iterator[TokenLoad]:
    whole = {place._replace(block=None): number for place, number in places if place.part == "encoder"}
    for place, number in whole.items():
        yield _load(folder, network, place, number, f"{_named(place)}-times-chosen")


def _gates(folder: Path, network: Grid, places: Sequence[tuple[Place, int]], chosen: Sequence[int]) -> list[GateValues]:
    """What every gate gave every expert; nothing if there is not one such file."""
    names = [f"{_named(place)}-gate" for place, _ in places]
    if not any((folder / f"experts/{name}.nii.gz").exists() for name in names):
        return []
    gates = []
    for (place, number), name, top_k in zip(places, names, chosen, strict=True):
        load = _load(folder, network, place, number, name)
        gates.append(GateValues(name, load.values, load.grid, place, load.stride, top_k))
    return gates


def _load(folder: Path, network: Grid, place: Place, number: int, name: str) -> TokenLoad:
    """One number per cell and expert, which stand along the fourth axis."""
    file = _file(folder, f"experts/{name}.nii.gz")
    image, affine = nifti.load(file)
    values = nifti.values_of(image)
    if values.ndim != 4 or values.shape[3] != number:
        raise InputError(
            f"{file} has the shape {values.shape}; four axes were expected, the last one with the {number} experts of "
            f"{_named(place)}. Copy the folder again, or register the pair again."
        )
    grid, stride = _cells(file, Grid((values.shape[0], values.shape[1], values.shape[2]), affine), network)
    return TokenLoad(name, values, grid, place, stride)
