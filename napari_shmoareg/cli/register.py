"""``shmoareg register``: two image files in, a registration folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_shmoareg.cli.errors import say
from napari_shmoareg.cli.options import (
    Affine,
    AffineOption,
    Channel,
    Contrast,
    ContrastOption,
    Debug,
    Device,
    DeviceOption,
    DiffeomorphicOption,
    Fixed,
    FixedLabels,
    Keep,
    KeepOption,
    Moving,
    MovingLabels,
    Nan,
    Network,
    NetworkOption,
    Quiet,
    RefineOption,
    Similarity,
    SimilarityOption,
    Size,
    Smoothness,
    SmoothnessOption,
    Weights,
)
from napari_shmoareg.cli.progress import progress
from napari_shmoareg.cli.results import (
    cautions_of,
    choices_of,
    files_of,
    missing_labels_of,
    result_table,
    seconds_of,
)
from napari_shmoareg.cli.running import Running
from napari_shmoareg.cli.tables import show
from napari_shmoareg.engine.phases import registering
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.weights import NO_NETWORK


def register(
    moving: Moving,
    fixed: Fixed,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder for the results: a new one, or an empty one.")
    ],
    moving_labels: MovingLabels = None,
    fixed_labels: FixedLabels = None,
    weights: Weights = None,
    network: NetworkOption = Network.auto,
    affine: AffineOption = Affine.auto,
    diffeomorphic: DiffeomorphicOption = None,
    device: DeviceOption = Device.auto,
    size: Size = None,
    refine: RefineOption = 0,
    similarity: SimilarityOption = Similarity.auto,
    contrast: ContrastOption = Contrast.auto,
    smoothness: SmoothnessOption = Smoothness.accurate,
    keep: KeepOption = Keep.best,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Draw pictures of the result too.")] = True,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bring the image MOVING onto the image FIXED.

    The two may differ in spacing, orientation, size and field of view. The folder DIR gets the warped image on
    FIXED's own grid, the transform for ITK, 3D Slicer and ANTs, a report with numbers, maps of the experts, figures.
    """
    from napari_shmoareg.io.places import check_new_folder

    if network is Network.none and weights is not None:
        raise InputError("--weights would do nothing with --network none. Leave one of them out.")
    check_new_folder(out)
    running = Running(weights, affine, diffeomorphic, device, size, refine, similarity, contrast, smoothness, keep)
    with progress(quiet, registering(refine)) as report:
        report("loading", 0.0)
        from napari_shmoareg.io.images import read_pair
        from napari_shmoareg.io.report import write_registration

        name, trained = (NO_NETWORK, None) if network is Network.none else running.network()
        report("reading", 0.0)
        pair = read_pair(moving, fixed, moving_labels, fixed_labels, nan=nan, channel=channel)
        registration = running.register(pair, trained, report)
        found = write_registration(registration, out, weights=name, figures=figures, progress=report)
    for line in cautions_of(found):
        say(line)
    if not quiet:
        show(result_table(found))
        typer.echo(
            f"{missing_labels_of(found)}\n{seconds_of(found)}\n{choices_of(found)}\n{files_of(out, found, figures)}"
        )
