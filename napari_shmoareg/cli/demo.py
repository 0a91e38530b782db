"""``shmoareg demo``: register the built-in pair, whose true deformation is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_shmoareg.cli.errors import say
from napari_shmoareg.cli.options import Debug, Device, DeviceOption, Quiet, RefineOption, Weights
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

if TYPE_CHECKING:
    from napari_shmoareg.engine.registration import Registration
    from napari_shmoareg.io.samples import Sample


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder for the results: a new one, or an empty one.")
    ] = Path("shmoareg-demo"),
    weights: Weights = None,
    refine: RefineOption = 60,
    device: DeviceOption = Device.auto,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Register the built-in sample pair, and say how far off the result truly is.

    The pair is made, not scanned: two breaths of an abdomen, with labels, on two oblique grids. Its deformation is
    known, so the true error in mm can be told. The result is refined on the pair, as `register --refine` does.
    Nothing is downloaded.
    """
    from napari_shmoareg.io.places import check_new_folder

    check_new_folder(out)
    running = Running(weights, device=device, refine=refine)
    with progress(quiet, registering(refine)) as report:
        report("loading", 0.0)
        from napari_shmoareg.io.report import write_registration
        from napari_shmoareg.io.samples import sample_pair

        name, network = running.network()
        report("reading", 0.0)
        sample = sample_pair()
        registration = running.register(sample.pair, network, report)
        extra = {"true_error_mm": true_errors(sample, registration)}
        found = write_registration(registration, out, weights=name, extra=extra, progress=report)
    for line in cautions_of(found):
        say(line)
    if not quiet:
        show(result_table(found))
        typer.echo(
            f"{missing_labels_of(found)}\n{seconds_of(found)}\n{choices_of(found)}\n{files_of(out, found, True)}"
        )


def true_errors(sample: Sample, registration: Registration) -> dict[str, dict[str, float]]:
    """Mean and 95th percentile in mm of the distance to the truth: before, after the affine, after all."""
    import numpy as np

    from napari_shmoareg.geometry import Transform

    stages = {
        "before": Transform(np.eye(4)),
        "affine": Transform(registration.alignment.matrix),
        "after": registration.transform,
    }
    return {stage: sample.error_mm(transform)._asdict() for stage, transform in stages.items()}
