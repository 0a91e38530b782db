"""The short account of a registration that a command prints."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table

from napari_shmoareg.cli.tables import results
from napari_shmoareg.io.weights import NO_NETWORK


def result_table(report: Mapping[str, Any]) -> Table:
    """Similarity, overlap, folding and, where it is known, the true error, before and after.

    Parameters
    ----------
    report : mapping
        The content of report.json.
    """
    from napari_shmoareg.analysis.quality import STAGES

    similarity = report["similarity"]
    truth = report.get("extra", {}).get("true_error_mm")
    rows = [
        ("correlation of intensities", [similarity[s]["ncc"] for s in STAGES], ".3f"),
        ("mutual information (0 to 1)", [similarity[s]["nmi"] for s in STAGES], ".3f"),
        (f"Dice, mean over {labels_of(report)}", _means(report["dice"], STAGES), ".3f"),
        ("surface distance, mm", _means(report["assd_mm"], STAGES), ".2f"),
    ]
    if truth is not None:
        rows += [
            ("true error, mm", [truth[s]["mean"] for s in STAGES], ".2f"),
            ("true error, 95th percentile, mm", [truth[s]["percentile_95"] for s in STAGES], ".2f"),
        ]
    rows += [
        ("folded voxels, %", [None, None, report["folding_percent"]], ".4f"),
        ("displacement, mean, mm", [None, None, report["displacement_mm"]["mean"]], ".2f"),
    ]
    pair = report["pair"]
    return results(f"{pair['moving']['name']} onto {pair['fixed']['name']}", ("before", "after affine", "after"), rows)


def labels_of(report: Mapping[str, Any]) -> str:
    """Over how many labels a mean is taken."""
    labels = report.get("labels")
    count = 0 if labels is None else len(labels["both"])
    return "labels" if labels is None else f"{count} label{'' if count == 1 else 's'}"


def missing_labels_of(report: Mapping[str, Any]) -> str:
    """Which labels one image lacks, on a line; empty if none."""
    from napari_shmoareg.analysis.metrics import SharedLabels

    labels = report.get("labels")
    shared = SharedLabels((), (), ()) if labels is None else SharedLabels(**{k: tuple(v) for k, v in labels.items()})
    return f"\nDice: {shared.description}; the mean is over those in both.\n" if shared.missing else ""


def cautions_of(report: Mapping[str, Any]) -> list[str]:
    """What to know before the result is trusted, as ``Caution:`` lines, and on its files as ``Note:`` lines.

    Parameters
    ----------
    report : mapping
        The content of report.json.
    """
    return [f"Caution: {text}" for text in report["warnings"]] + [f"Note: {text}" for text in report["notes"]]


def seconds_of(report: Mapping[str, Any]) -> str:
    """How long it took, part by part."""
    seconds = dict(report["seconds"])
    total = seconds.pop("total", None)
    total = sum(seconds.values()) if total is None else total
    parts = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in seconds.items())
    by = "without a network" if report["weights"] == NO_NETWORK else f"with the weights {report['weights']}"
    return f"Registered in {total:.1f} s ({parts}), {by}."


def choices_of(report: Mapping[str, Any]) -> str:
    """What was decided for the caller and why, one line each."""
    lines = [f"  {name}: {reason}" for name, reason in report["choices"].items()]
    return "\n".join(
        ["Chosen, and why (overrule with --weights, --affine, --contrast, --similarity, --refine):", *lines]
    )


def files_of(folder: Path, report: Mapping[str, Any], figures: bool) -> str:
    """What lies where, one line each."""
    warped = ["the moving image on the fixed grid", "warped.nii.gz"]
    lines = [warped]
    if report["pair"]["moving_labels"]:
        lines.append(["its labels there", "warped_labels.nii.gz"])
    lines += [
        ["what was registered", "inputs/"],
        ["transform for ITK, Slicer, ANTs", "transform.h5, displacement.nii.gz"],
        ["all numbers", "report.json"],
        ["expert maps and loads", "experts/"],
    ]
    if figures:
        lines.append(["figures", "figures/overview.png and others"])
    width = max(len(what) for what, _ in lines)
    listed = [f"Results in {folder}:", *(f"  {what:<{width}}  {name}" for what, name in lines)]
    return "\n".join([*listed, *_in_napari(folder)])


def _in_napari(folder: Path) -> list[str]:
    """How to open the folder, where napari is installed: by its whole path, if a terminal would not find it."""
    if find_spec("napari") is None:
        return []
    program = "napari" if shutil.which("napari") else str(Path(sys.executable).with_name("napari"))
    return [f"See it in napari: {shlex.join([program, '--plugin', 'shmoareg', str(folder)])}"]


def _means(found: Mapping[str, Any] | None, stages: Sequence[str]) -> list[float | None]:
    return [None if found is None else found[stage]["mean"] for stage in stages]
