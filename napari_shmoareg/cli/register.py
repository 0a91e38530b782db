"""``shmoareg register``, ``apply`` and ``demo``: images in, a registration folder out."""

from __future__ import annotations

import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from napari_shmoareg.cli.console import print_note, progress, results, show
from napari_shmoareg.cli.options import (
    REGISTRATION,
    Channel,
    CommandRequest,
    Debug,
    Fill,
    Fixed,
    FixedLabels,
    FixedMask,
    Initial,
    LabelNamesFile,
    LandmarkFile,
    LandmarkFit,
    LandmarkFitOption,
    Moving,
    MovingLabels,
    Nan,
    Network,
    NetworkOption,
    Quiet,
    Weights,
    settings_in,
    with_settings,
)
from napari_shmoareg.errors import InputError, NoOverlapError
from napari_shmoareg.io.model_card import NO_NETWORK
from napari_shmoareg.registration.progress import registration_phases
from napari_shmoareg.settings import RegistrationSettings

if TYPE_CHECKING:
    import numpy as np

    from napari_shmoareg.geometry import Grid, Transform, Volume
    from napari_shmoareg.io.samples import Sample
    from napari_shmoareg.registration.register import Registration


def apply(
    transform: Annotated[
        Path,
        typer.Argument(
            metavar="TRANSFORM",
            help="transform.h5 or displacement.nii.gz of a registration, or its folder.",
        ),
    ],
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="The image or label map to transform.")
    ],
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            metavar="FIXED",
            help="The image that defines the grid of the result: FIXED, or MOVING with --inverse.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File of the result (.nii or .nii.gz).")
    ],
    labels: Annotated[
        bool,
        typer.Option("--labels", help="IMAGE is a label map: keep its values (nearest neighbour)."),
    ] = False,
    inverse: Annotated[
        bool,
        typer.Option(
            "--inverse",
            help="Transform in the other direction: from the fixed image to the moving one.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE if it exists.")
    ] = False,
    fill: Fill = "auto",
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Apply a transform that `register` wrote to an image or label map.

    The image is interpolated once, onto the grid of --reference. If its header says that it is a
    label map, its values are kept, as with --labels.
    """
    _check_output_path(out, overwrite, (transform, image, reference))
    from napari_shmoareg.io import read_image, read_transform, write_image

    if transform.is_dir():
        transform = transform / "transform.h5"
    volume = read_image(image, labels=labels, nan=nan, channel=channel)
    if not labels:
        volume = _use_header_kind(image, volume)
    _check_finite(volume)
    grid = read_image(reference, channel=0).grid
    found = read_transform(transform)
    write_image(apply_transform(volume, grid, found, inverse=inverse, fill=fill), out)
    if not quiet:
        typer.echo(f"Wrote {out}")


def _use_header_kind(path: Path, volume: Volume) -> Volume:
    """Treat the volume as labels if its header says so; warn if only its name does."""
    from napari_shmoareg.io.images import inspect_file, is_named_as_labels

    if inspect_file(path).kind == "labels":
        try:
            volume = replace(volume, is_labels=True)
        except InputError as error:
            warnings.warn(
                f"The header of '{path}' says that it is a label map, but it was interpolated"
                f" linearly as an image: {error}",
                UserWarning,
                stacklevel=2,
            )
        else:
            warnings.warn(
                f"The header of '{path}' says that it is a label map: its values were kept"
                " (nearest neighbour), as with --labels.",
                UserWarning,
                stacklevel=2,
            )
    elif is_named_as_labels(path) and _has_whole_numbers(volume):
        warnings.warn(
            f"'{path}' is named like a label map but was interpolated linearly, which creates"
            " values that are not labels. Give --labels to keep its values.",
            UserWarning,
            stacklevel=2,
        )
    return volume


def _has_whole_numbers(volume: Volume) -> bool:
    import numpy as np

    v = volume.values
    return bool(v.dtype.kind in "iu" or (np.isfinite(v).all() and (v == np.rint(v)).all()))


def apply_transform(
    volume: Volume,
    reference: Grid,
    transform: Transform,
    *,
    inverse: bool = False,
    fill: float | str = "auto",
) -> Volume:
    """As `warp_volume`, but raise if the result would contain nothing of the volume.

    Raises
    ------
    NoOverlapError
        If no voxel of the reference is mapped into the volume's field of view.
    """
    from napari_shmoareg.geometry import fill_value, inside, pull

    move = transform.inverse_points if inverse else transform.map_points
    overlapping = False

    def read_at(points: np.ndarray) -> np.ndarray:
        nonlocal overlapping
        mapped = move(points)
        overlapping = overlapping or bool(inside(volume.grid, mapped).any())
        return mapped

    result = pull(volume, reference, read_at, fill_value(volume, fill))
    if not overlapping:
        raise _no_overlap_error(volume, reference, move(reference.centre), inverse)
    return result


def _no_overlap_error(
    volume: Volume, reference: Grid, middle: np.ndarray, inverse: bool
) -> NoOverlapError:
    """Make the error for a reference that the transform does not map into the volume."""
    x, y, z = volume.grid.centre - middle
    here, there = ("fixed", "moving") if inverse else ("moving", "fixed")
    other = "without --inverse" if inverse else "with --inverse"
    return NoOverlapError(
        f"The image '{volume.name}' and the reference do not overlap: the transform maps no"
        " voxel of the reference into the image, and the centre of the reference to a point"
        f" {(x * x + y * y + z * z) ** 0.5:.0f} mm from the centre of the image (x, y, z:"
        f" {x:.0f}, {y:.0f}, {z:.0f} mm). The image has to be in the space of the {here} image"
        f" of the registration, and --reference in that of the {there} one; {other} it is the"
        " other way round."
    )


def _check_finite(volume: Volume) -> None:
    """Reject voxels that interpolation would spread."""
    import numpy as np

    bad = int(volume.values.size - np.isfinite(volume.values).sum())
    if bad:
        raise InputError(
            f"The image '{volume.name}' has {bad} voxels that are NaN or infinite (of"
            f" {volume.values.size}). Give --nan 0 to read them as 0, or fix the image."
        )


def _check_output_path(out: Path, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    """Reject an invalid output path before the work starts."""
    from napari_shmoareg.io.files import check_new_file, ending

    if ending(out) not in (".nii", ".nii.gz"):
        raise InputError(
            f"Images are written as NIfTI: the name '{out}' has to end in .nii or .nii.gz."
        )
    check_new_file(out, overwrite=overwrite, inputs=inputs)


def result_table(report: Mapping[str, Any]) -> Table:
    """Table of similarity, overlap, folding and, if known, the true error, before and after.

    Parameters
    ----------
    report : mapping
        The content of report.json.
    """
    from napari_shmoareg.metrics.measure import SHOWN_STAGES

    similarity = report["similarity"]
    truth = report.get("extra", {}).get("true_error_mm")
    where = " in the mask" if report.get("similarity_within") == "mask" else ""
    rows = [
        (f"correlation of intensities{where}", [similarity[s]["ncc"] for s in SHOWN_STAGES], ".3f"),
        (
            f"mutual information{where} (0 to 1)",
            [similarity[s]["nmi"] for s in SHOWN_STAGES],
            ".3f",
        ),
        (f"Dice, mean over {labels_of(report)}", _means(report["dice"], SHOWN_STAGES), ".3f"),
        ("surface distance, mm", _means(report["assd_mm"], SHOWN_STAGES), ".2f"),
    ]
    if truth is not None:
        rows += [
            ("true error, mm", [truth[s]["mean"] for s in SHOWN_STAGES], ".2f"),
            (
                "true error, 95th percentile, mm",
                [truth[s]["percentile_95"] for s in SHOWN_STAGES],
                ".2f",
            ),
        ]
    rows += [
        ("folded voxels, %", [None, None, report["folding_percent"]], ".4f"),
        ("displacement, mean, mm", [None, None, report["displacement_mm"]["mean"]], ".2f"),
    ]
    pair = report["pair"]
    return results(
        f"{pair['moving']['name']} onto {pair['fixed']['name']}",
        ("before", "after affine", "after"),
        rows,
    )


def labels_of(report: Mapping[str, Any]) -> str:
    """Number of labels of a mean, in words."""
    labels = report.get("labels")
    count = 0 if labels is None else len(labels["both"])
    return "labels" if labels is None else f"{count} label{'' if count == 1 else 's'}"


def labels_lines(report: Mapping[str, Any]) -> str:
    """Lines on the source of the names, and on labels that are missing in one image; or nothing."""
    from napari_shmoareg.io.label_names import reported_names
    from napari_shmoareg.metrics import SharedLabels

    labels = report.get("labels")
    shared = (
        SharedLabels((), (), ())
        if labels is None
        else SharedLabels(**{k: tuple(v) for k, v in labels.items()})
    )
    names = reported_names(report)
    lines = [f"\nNames of the labels: from {names.source}."] if names else []
    if shared.missing:
        lines += [f"\nDice: {shared.describe(names)}; the mean is over those in both."]
    return "".join(f"{line}\n" for line in lines)


def caution_lines(report: Mapping[str, Any]) -> list[str]:
    """Warnings as ``Caution:`` lines, and notes on the files as ``Note:`` lines.

    Parameters
    ----------
    report : mapping
        The content of report.json.
    """
    return [f"Caution: {text}" for text in report["warnings"]] + [
        f"Note: {text}" for text in report["notes"]
    ]


def seconds_line(report: Mapping[str, Any]) -> str:
    """A line on the time of each part."""
    seconds = dict(report["seconds"])
    total = seconds.pop("total", None)
    total = sum(seconds.values()) if total is None else total
    parts = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in seconds.items())
    by = (
        "without a network"
        if report["weights"] == NO_NETWORK
        else f"with the weights {report['weights']}"
    )
    return f"Registered in {total:.1f} s ({parts}), {by}."


def choices_lines(report: Mapping[str, Any]) -> str:
    """Automatic choices and their reasons, one line each."""
    lines = [f"  {name}: {reason}" for name, reason in report["choices"].items()]
    return "\n".join(
        [
            (
                "Automatic choices (override with --weights, --affine, --contrast, --similarity,"
                " --refine):"
            ),
            *lines,
        ]
    )


def file_lines(folder: Path, report: Mapping[str, Any], figures: bool) -> str:
    """The files of the result, one line each."""
    warped = ["the moving image on the fixed grid", "warped.nii.gz"]
    lines = [warped]
    if report["pair"]["moving_labels"]:
        lines.append(["its labels there", "warped_labels.nii.gz"])
    lines += [
        ["the registered images", "inputs/"],
        ["transform for ITK, Slicer, ANTs", "transform.h5, displacement.nii.gz"],
        ["all numbers", "report.json"],
        ["expert maps and loads", "experts/"],
    ]
    if figures:
        lines.append(["figures", "figures/overview.png and others"])
    width = max(len(what) for what, _ in lines)
    listed = [f"Results in {folder}:", *(f"  {what:<{width}}  {name}" for what, name in lines)]
    return "\n".join([*listed, *_napari_command(folder)])


def _napari_command(folder: Path) -> list[str]:
    """How to open the folder in napari, if installed; with its full path if it is not on the
    PATH.
    """
    if find_spec("napari") is None:
        return []
    program = "napari" if shutil.which("napari") else str(Path(sys.executable).with_name("napari"))
    return [f"See it in napari: {shlex.join([program, '--plugin', 'shmoareg', str(folder)])}"]


def _means(found: Mapping[str, Any] | None, stages: Sequence[str]) -> list[float | None]:
    return [None if found is None else found[stage]["mean"] for stage in stages]


@partial(with_settings, settings=REGISTRATION)
def register(
    moving: Moving,
    fixed: Fixed,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for the results: new or empty."),
    ],
    moving_labels: MovingLabels = None,
    fixed_labels: FixedLabels = None,
    label_names: LabelNamesFile = None,
    fixed_mask: FixedMask = None,
    initial: Initial = None,
    landmarks: LandmarkFile = None,
    landmark_fit: LandmarkFitOption = LandmarkFit.rigid,
    weights: Weights = None,
    network: NetworkOption = Network.auto,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Also write figures of the result.")
    ] = True,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Register the image MOVING to the image FIXED.

    They may differ in spacing, orientation, size and field of view. DIR gets the warped image on
    the grid of FIXED, the transform for ITK, 3D Slicer and ANTs, a report with numbers, expert maps
    and figures.
    """
    from napari_shmoareg.io.files import check_new_folder
    from napari_shmoareg.io.label_names import name_labels, read_label_names

    if network is Network.none and weights is not None:
        raise InputError(
            "--weights would have no effect with --network none. Leave one of them out."
        )
    if initial is not None and landmarks is not None:
        raise InputError("--initial and --landmarks are two starts. Leave one of them out.")
    check_new_folder(out)
    names = None if label_names is None else read_label_names(label_names)
    request = CommandRequest.of(weights, given)
    with progress(quiet, registration_phases(request.refine)) as report:
        report("loading", 0.0)
        from napari_shmoareg.io import read_pair, write_registration

        name, trained = (NO_NETWORK, None) if network is Network.none else request.network()
        report("reading", 0.0)
        pair = read_pair(
            moving, fixed, moving_labels, fixed_labels, fixed_mask, nan=nan, channel=channel
        )
        files = {"moving_labels": moving_labels, "fixed_labels": fixed_labels}
        pair = replace(
            pair,
            **{
                role: name_labels(pair.volumes[role], file, names)
                for role, file in files.items()
                if file is not None
            },
        )
        start = read_start(initial, landmarks, landmark_fit.value, pair.fixed.grid)
        registration = request.register(pair, trained, report, start)
        found = write_registration(
            registration, out, weights=name, figures=figures, progress=report
        )
    for line in caution_lines(found):
        print_note(line)
    if not quiet:
        show(result_table(found))
        typer.echo(
            f"{labels_lines(found)}\n{seconds_line(found)}\n{choices_lines(found)}\n"
            f"{file_lines(out, found, figures)}"
        )


def read_start(
    initial: Path | None, landmarks: Path | None, kind: Any, grid: Grid
) -> tuple[Transform, str] | None:
    """Read the initial transform, and where it is from; None without a file.

    Raises
    ------
    InputError
        If a file cannot be read or its landmarks do not determine the transform.
    """
    if initial is not None:
        from napari_shmoareg.io import read_transform

        return read_transform(initial), f"the transform {initial.name}"
    if landmarks is None:
        return None
    from napari_shmoareg.geometry import fit_landmarks
    from napari_shmoareg.io.landmarks import read_landmark_pairs

    pairs = read_landmark_pairs(landmarks)
    for note in pairs.notes:
        print_note(f"Note: {landmarks}: {note}.")
    return fit_landmarks(pairs.fixed, pairs.moving, kind, grid)


@partial(
    with_settings,
    settings=REGISTRATION,
    only=("refine", "device"),
    default={"refine": "60"},
)
def demo(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder for the results: new or empty."),
    ] = Path("shmoareg-demo"),
    weights: Weights = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Register the built-in sample pair, and show the true error of the result.

    The pair is synthetic: two breathing states of an abdomen, with labels, on two oblique grids.
    Its deformation is known, so the true error in mm is known too. The result is refined on the
    pair, as with `register --refine`. Nothing is downloaded.
    """
    from napari_shmoareg.io.files import check_new_folder

    check_new_folder(out)
    request = CommandRequest.of(weights, {"refine": 60, **settings_in(given, RegistrationSettings)})
    with progress(quiet, registration_phases(request.refine)) as report:
        report("loading", 0.0)
        from napari_shmoareg.io import sample_pair, write_registration

        name, network = request.network()
        report("reading", 0.0)
        sample = sample_pair()
        registration = request.register(sample.pair, network, report)
        extra = {"true_error_mm": true_errors(sample, registration)}
        found = write_registration(registration, out, weights=name, extra=extra, progress=report)
    for line in caution_lines(found):
        print_note(line)
    if not quiet:
        show(result_table(found))
        typer.echo(
            f"{labels_lines(found)}\n{seconds_line(found)}\n{choices_lines(found)}\n"
            f"{file_lines(out, found, True)}"
        )


def true_errors(sample: Sample, registration: Registration) -> dict[str, dict[str, float]]:
    """Mean and 95th percentile of the true error in mm: before, after affine and registration."""
    import numpy as np

    from napari_shmoareg.geometry import Transform

    stages = {
        "before": Transform(np.eye(4)),
        "affine": Transform(registration.alignment.matrix),
        "after": registration.transform,
    }
    return {stage: sample.error_mm(transform)._asdict() for stage, transform in stages.items()}
