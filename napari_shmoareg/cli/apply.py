"""``shmoareg apply``: carry another image through a written transform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_shmoareg.cli.options import Channel, Debug, Quiet


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
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Carry an image or labels through a transform that `register` wrote.

    By one interpolation of the image's own voxels onto the grid of --reference.
    """
    from napari_shmoareg.io.places import check_new_file

    check_new_file(out, overwrite=overwrite, inputs=(transform, image, reference))
    from napari_shmoareg.geometry import warp_volume
    from napari_shmoareg.io.images import read_image, write_image
    from napari_shmoareg.io.transforms import read_transform

    if transform.is_dir():
        transform = transform / "transform.h5"
    carried = warp_volume(
        read_image(image, labels=labels, channel=channel),
        read_image(reference, channel=0).grid,
        read_transform(transform),
        inverse=inverse,
    )
    write_image(carried, out)
    if not quiet:
        typer.echo(f"Wrote {out}")
