"""``shmoareg apply``: carry another image through a written transform."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_shmoareg.cli.options import Channel, Debug, Nan, Quiet
from napari_shmoareg.geometry import InputError, NoOverlapError

if TYPE_CHECKING:
    import numpy as np

    from napari_shmoareg.geometry import Grid, Transform, Volume


def apply(
    transform: Annotated[
        Path,
        typer.Argument(
            metavar="TRANSFORM", help="transform.h5 or displacement.nii.gz of a registration, or its folder."
        ),
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="What to carry: an image or a label map.")],
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            metavar="FIXED",
            help="The image whose grid the result takes: FIXED, or MOVING with --inverse.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the result goes (.nii or .nii.gz).")],
    labels: Annotated[
        bool, typer.Option("--labels", help="IMAGE is a label map: keep its numbers (nearest neighbour).")
    ] = False,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Carry the other way: from the fixed image to the moving one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Carry an image or labels through a transform that `register` wrote.

    By one interpolation of the image's own voxels onto the grid of --reference.  An image whose
    header says that it holds labels keeps its numbers, as with --labels.
    """
    _check_place(out, overwrite, (transform, image, reference))
    from napari_shmoareg.io.images import read_image, write_image
    from napari_shmoareg.io.transforms import read_transform

    if transform.is_dir():
        transform = transform / "transform.h5"
    volume = read_image(image, labels=labels, nan=nan, channel=channel)
    if not labels:
        volume = _as_its_header_says(image, volume)
    _check_finite(volume)
    grid = read_image(reference, channel=0).grid
    write_image(carried(volume, grid, read_transform(transform), inverse=inverse), out)
    if not quiet:
        typer.echo(f"Wrote {out}")


def _as_its_header_says(path: Path, volume: Volume) -> Volume:
    """The volume as labels if its file says that it holds these; a word if only its name does."""
    from dataclasses import replace

    from napari_shmoareg.io.contents import is_named_as_labels, look

    if look(path).kind == "labels":
        try:
            volume = replace(volume, is_labels=True)
        except InputError as error:
            warnings.warn(
                f"The header of '{path}' says that it holds labels, but it was interpolated linearly as an image: "
                f"{error}",
                UserWarning,
                stacklevel=2,
            )
        else:
            warnings.warn(
                f"The header of '{path}' says that it holds labels: its numbers were kept (nearest neighbour), as with "
                "--labels.",
                UserWarning,
                stacklevel=2,
            )
    elif is_named_as_labels(path) and _has_whole_numbers(volume):
        warnings.warn(
            f"'{path}' is named like a label map and was interpolated linearly, which makes labels that nobody drew. "
            "Give --labels to keep its numbers.",
            UserWarning,
            stacklevel=2,
        )
    return volume


def _has_whole_numbers(volume: Volume) -> bool:
    import numpy as np

    v = volume.values
    return bool(v.dtype.kind in "iu" or (np.isfinite(v).all() and (v == np.rint(v)).all()))


def carried(volume: Volume, reference: Grid, transform: Transform, *, inverse: bool = False) -> Volume:
    """As `warp_volume`, but refused where the result would show nothing of the volume.

    Raises
    ------
    NoOverlapError
        If no voxel of the reference reads inside the volume's field of view.
    """
    from napari_shmoareg.geometry import inside, pull

    move = transform.inverse_points if inverse else transform.map_points
    met = False

    def read_at(points: np.ndarray) -> np.ndarray:
        nonlocal met
        place = move(points)
        met = met or bool(inside(volume.grid, place).any())
        return place

    result = pull(volume, reference, read_at)
    if not met:
        raise _apart(volume, reference, move(reference.centre), inverse)
    return result


def _apart(volume: Volume, reference: Grid, middle: np.ndarray, inverse: bool) -> NoOverlapError:
    """What to say when the transform leads from no voxel of the reference into the volume."""
    x, y, z = volume.grid.centre - middle
    here, there = ("fixed", "moving") if inverse else ("moving", "fixed")
    other = "without --inverse" if inverse else "with --inverse"
    return NoOverlapError(
        f"The image '{volume.name}' and the reference do not meet: the transform leads from no voxel of the reference "
        f"into the image, and from the middle of the reference to a point {(x * x + y * y + z * z) ** 0.5:.0f} mm from "
        f"the middle of the image (x, y, z: {x:.0f}, {y:.0f}, {z:.0f} mm). The image has to lie where the {here} image "
        f"of the registration does, and --reference where the {there} one does; {other} it is the other way round."
    )


def _check_finite(volume: Volume) -> None:
    """Refuse voxels that interpolation would spread."""
    import numpy as np

    bad = int(volume.values.size - np.isfinite(volume.values).sum())
    if bad:
        raise InputError(
            f"The image '{volume.name}' has {bad} voxels that are NaN or infinite (of {volume.values.size}). Give "
            "--nan 0 to read them as 0, or mend the image."
        )


def _check_place(out: Path, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    """Refuse before the work what would fail after it."""
    from napari_shmoareg.io.atomic import ending
    from napari_shmoareg.io.places import check_new_file

    if ending(out) not in (".nii", ".nii.gz"):
        raise InputError(f"Images are written as NIfTI: the name '{out}' has to end in .nii or .nii.gz.")
    check_new_file(out, overwrite=overwrite, inputs=inputs)
