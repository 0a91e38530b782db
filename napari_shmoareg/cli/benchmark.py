"""``shmoareg benchmark``: compare registration methods on the same pairs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.console import plain_table, print_note, resumable, show
from napari_shmoareg.cli.evaluate import Images, SeedOption, resolve_weights
from napari_shmoareg.cli.options import (
    REGISTRATION,
    Channel,
    Debug,
    Nan,
    Quiet,
    UniGradICONWeights,
    Weights,
    settings_in,
    with_settings,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation.isolated_run import IsolatedRun, Measurements, run_isolated
from napari_shmoareg.io.machine import machine, versions
from napari_shmoareg.io.model_card import checksum_of
from napari_shmoareg.io.untrusted import MAX_TABLE, printable, read_csv, user_path
from napari_shmoareg.io.work_folder import WorkFolder, check_row
from napari_shmoareg.settings import RegistrationSettings

if TYPE_CHECKING:
    from rich.table import Table

    from napari_shmoareg.datasets import PairFiles
    from napari_shmoareg.evaluation.comparison import MethodSummary


FILES = ("moving", "fixed", "moving_labels", "fixed_labels", "landmarks")


class Change(StrEnum):
    """Change of the moving image's intensities."""

    none = "none"
    invert = "invert"
    gamma = "gamma"


def select_methods(text: str) -> list[str]:
    """Parse ``--methods``; "start" is always the first."""
    from napari_shmoareg.evaluation.methods import START, TIMED, check_available

    names = list(
        dict.fromkeys([START, *(name.strip().lower() for name in text.split(",") if name.strip())])
    )
    for name in names:
        check_available(name)
        if name in TIMED and TIMED[name] not in names[: names.index(name)]:
            raise InputError(
                f"The method '{name}' uses the run time of {TIMED[name]}: list that before it in"
                " --methods."
            )
    return names


def check_used(names: Sequence[str], options: Mapping[str, tuple[object, Sequence[str]]]) -> None:
    """Reject an option that is given (not None) if none of its methods runs."""
    from napari_shmoareg.evaluation.methods import SMOOTHER, TIMED

    for option, (value, methods) in options.items():
        if value is not None and not set(names) & set(methods):
            named = " and no ".join(name for name in methods if name not in (*TIMED, *SMOOTHER))
            raise InputError(
                f"{option} would have no effect: --methods lists no {named}. Add it there, or"
                " leave the option out."
            )


def select_pairs(
    dataset: Path,
    images: str | None,
    labels: str | None,
    choice: tuple[int | None, int],
    quiet: bool,
) -> tuple[PairFiles, ...]:
    """Select the pairs of a list or a folder, and print how they were selected."""
    from napari_shmoareg.datasets import choose_pairs, read_folder, read_pair_list

    if dataset.is_dir():
        if images is None:
            raise InputError(
                f"{dataset} is a folder: give --images, such as --images 'images/*.nii.gz', to"
                " find its images."
            )
        files = read_folder(dataset, images, labels)
        how = "all ordered pairs of its images"
    else:
        if images or labels:
            raise InputError(f"--images and --labels are for a folder, but {dataset} is not one.")
        files, how = read_pair_list(dataset).files, "the pairs of the list"
    count, seed = choice
    if count is None or count >= len(files):
        note, chosen = f"{len(files)} pairs: {how}.", files
    else:
        chosen = choose_pairs(files, count, seed)
        counted = Counter(path for pair in chosen for path in (pair.moving, pair.fixed))
        uses = [
            counted[path] for path in {path for pair in files for path in (pair.moving, pair.fixed)}
        ]
        note = (
            f"{count} of {len(files)} pairs ({how}), selected by --seed {seed} so that each"
            f" image is used about equally often: {min(uses)} to {max(uses)} times."
        )
    if not quiet:
        print_note(note)
    return chosen


def weights_for(names: Sequence[str], requested: str | None, device: str) -> str | None:
    """Resolve the weights if a method needs them, to fail before hours of work rather than
    after.
    """
    from napari_shmoareg.evaluation.methods import NETWORKS

    return resolve_weights(requested, device) if set(names) & set(NETWORKS) else None


def unigradicon_weights_for(names: Sequence[str], requested: Path | None) -> str | None:
    """Resolve and check the uniGradICON weights file if that method runs."""
    if "unigradicon" not in names:
        return None
    from napari_shmoareg.evaluation.methods import load_method

    file = None if requested is None else str(user_path(requested).resolve())
    load_method("unigradicon", unigradicon_weights=file, device="cpu")
    return file


def cpus() -> int:
    """Number of CPUs available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


DEFAULT = "shmoareg,shmoareg+refine,demons,affine"
DatasetArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATASET",
        help=(
            "A CSV list (columns moving, fixed, moving_labels, fixed_labels, landmarks; the last"
            " is a CSV file of x,y,z in the fixed and in the moving image, mm, LPS), or a folder"
            " with --images."
        ),
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Folder for the results. An unfinished one is continued."
    ),
]
MethodsOption = Annotated[
    str,
    typer.Option(
        "--methods",
        metavar="A,B,...",
        help=(
            "shmoareg, shmoareg+refine, affine+refine (no network), affine+refine@shmoareg (the"
            " same, stopped after the run time of shmoareg's network), affine+refine:balanced and"
            " affine+refine:smooth (smoother), affine, demons, syn, greedy, convexadam (these three"
            ' need pip install "shmoareg[peers]"), unigradicon (needs pip install'
            " icon_registration), niftyreg (needs its programs on the PATH). The start (headers"
            " alone) is always measured."
        ),
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="PATTERN",
        help="For a folder: pattern of their label maps, in the same order of names.",
    ),
]
PairsOption = Annotated[
    int | None,
    typer.Option(
        "--pairs",
        min=1,
        help="Number of pairs; each image is used about equally often.",
        show_default="all",
    ),
]
ChangeOption = Annotated[
    Change,
    typer.Option("--change", help="Change the moving image's intensities for every method."),
]
GammaOption = Annotated[
    float | None,
    typer.Option("--gamma", min=0.01, help="The exponent of --change gamma.", show_default="0.5"),
]
RefineOption = Annotated[
    int | None,
    typer.Option(
        "--refine",
        metavar="STEPS",
        min=1,
        help="Steps of the methods that refine.",
        show_default="the engine's",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of each method.", show_default="all")
]
SurfaceOption = Annotated[
    bool,
    typer.Option(
        "--surface/--no-surface", help="Also measure surface distances (ASSD, HD95; slow)."
    ),
]


@partial(with_settings, settings=REGISTRATION, without=("affine", "keep", "fill"))
def benchmark(
    dataset: DatasetArgument,
    out: OutOption,
    methods: MethodsOption = DEFAULT,
    images: Images = None,
    labels: Labels = None,
    pairs: PairsOption = None,
    seed: SeedOption = 1,
    change: ChangeOption = Change.none,
    gamma: GammaOption = None,
    refine: RefineOption = None,
    weights: Weights = None,
    unigradicon_weights: UniGradICONWeights = None,
    threads: ThreadsOption = None,
    surface: SurfaceOption = False,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Compare registration methods on the same pairs.

    Each method registers each pair in a separate process, one after the other; the resulting
    displacements are measured by the same code. DIR gets pairs.csv (a row per pair and method),
    summary.md and plot.png. If a method fails, its row has the error. Ctrl-C keeps the rows; the
    same command continues.
    """
    from napari_shmoareg.evaluation.methods import GAMMA, NETWORKS, REFINED
    from napari_shmoareg.registration.refinement import DEFAULT_STEPS

    names, own = select_methods(methods), tuple(dict.fromkeys((*NETWORKS, *REFINED)))
    settings, defaults = settings_in(given, RegistrationSettings), vars(RegistrationSettings())
    used: dict[str, tuple[object, Sequence[str]]] = {
        "--refine": (refine, REFINED),
        "--weights": (weights, NETWORKS),
        "--unigradicon-weights": (unigradicon_weights, ("unigradicon",)),
    }
    for name, value in settings.items():
        if name != "device" and value != defaults[name]:
            used[f"--{name}"] = (value, REFINED if name == "similarity" else own)
    check_used(names, used)
    if gamma is not None and change is not Change.gamma:
        raise InputError(
            "--gamma would have no effect without --change gamma. Add that, or leave --gamma out."
        )
    chosen = select_pairs(dataset, images, labels, (pairs, seed), quiet)
    common = IsolatedRun(
        method="start",
        moving="",
        fixed="",
        change=change.value,
        gamma=GAMMA if gamma is None else gamma,
        weights=weights_for(names, weights, settings.get("device", "auto")),
        unigradicon_weights=unigradicon_weights_for(names, unigradicon_weights),
        refine=refine or DEFAULT_STEPS,
        threads=threads or cpus(),
        surface=surface,
        nan=nan,
        channel=channel,
        **settings,
    )
    trials = [replace(common, method=name, **_files(pair)) for pair in chosen for name in names]
    run_all(out, benchmark_plan(common, names, trials), trials, quiet)


def benchmark_plan(
    common: IsolatedRun, names: Sequence[str], trials: Sequence[IsolatedRun]
) -> dict[str, Any]:
    """Everything that the results depend on, as in benchmark.json."""
    from napari_shmoareg.evaluation.methods import used_versions

    settings = {
        key: value for key, value in asdict(common).items() if key not in ("method", *FILES)
    }
    # as in plans of the last release
    settings["seconds"] = settings.pop("refine_seconds")
    del settings["affine"], settings["keep"], settings["fill"]
    if common.unigradicon_weights is None:
        del settings["unigradicon_weights"]
    for name in ("weights", "unigradicon_weights"):
        if settings.get(name) is not None:
            settings[f"{name}_sha256"] = checksum_of(settings[name])
    used = {name: number for name, number in versions().items() if number is not None}
    for name in names:
        used |= used_versions(name)
    return {
        "methods": list(names),
        "settings": settings,
        "versions": used,
        "machine": machine(),
        "pairs": [[getattr(trial, name) for name in FILES] for trial in trials[:: len(names)]],
    }


def run_all(out: Path, plan: Mapping[str, Any], trials: Sequence[IsolatedRun], quiet: bool) -> None:
    """Run what has no row yet, and write the results of all rows."""
    from napari_shmoareg.evaluation.comparison import (
        PLOT,
        ROWS,
        SUMMARY,
        write_results,
        write_rows,
    )

    remedy = " Delete it; the same command then runs this part again."
    rows: list[dict[str, Any]] = []
    runs = {
        f"{number // len(plan['methods']) + 1:04d}-{trial.method.replace(':', '-')}": trial
        for number, trial in enumerate(trials)
    }
    with WorkFolder(out, "benchmark.json", "rows", "benchmark", remedy).begin(plan) as work:
        _import_table(work)

        def read(key: str) -> dict[str, Any] | None:
            return work.read(key, _checked)

        def run(key: str) -> dict[str, Any]:
            return _run(int(key.partition("-")[0]), runs[key], rows)

        def finish() -> list[MethodSummary]:
            return write_results(out, rows, plan)

        with resumable(lambda: len(rows), len(trials), out, "runs", finish):
            for row, new in work.complete(runs, read, run):
                rows.append(row)
                if new:
                    write_rows(out, rows)
                if new and not quiet:
                    count = len(plan["pairs"])
                    print_note(
                        f"pair {row['pair']} of {count}, {row['method']}: {describe_row(row)}"
                    )
        summaries = finish()
    if not quiet:
        show(results_table(summaries))
        typer.echo(f"\nResults in {out}: {ROWS}, {SUMMARY}, {PLOT}")


@dataclass(frozen=True)
class _Row:
    """The types of a row."""

    pair: int
    moving: str
    fixed: str
    method: str
    dice: float | None
    assd_mm: float | None
    hd95_mm: float | None
    landmark_mm: float | None
    folding_percent: float | None
    sdlogj: float | None
    seconds: float | None
    memory_mib: float | None
    deforming_seconds: float | None
    labels: str | None
    error: str | None


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    check_row(_Row, row)
    return {field.name: row[field.name] for field in fields(_Row)}


def _import_table(work: WorkFolder) -> None:
    """Import the table of a benchmark that was started by an earlier release."""
    table = work.path / "pairs.csv"
    if not table.is_file() or any(work.rows.iterdir()):
        return
    for line, cells in read_csv(table, "the rows of a benchmark", limit=MAX_TABLE)[1]:
        try:
            row: dict[str, Any] = {}
            for name in (field.name for field in fields(_Row)):
                text = name in ("moving", "fixed", "method", "labels", "error")
                row[name] = (cells[name] if text else float(cells[name])) if cells[name] else None
            row["pair"] = int(cells["pair"])
            check_row(_Row, row)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{table}, line {line}, is damaged ({error}). Delete that line; the same command"
                " then runs it again."
            ) from error
        work.write(f"{row['pair']:04d}-{row['method'].replace(':', '-')}", row)


def _run(pair: int, trial: IsolatedRun, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Run a method on a pair and return its row."""
    from napari_shmoareg.evaluation.comparison import MEASURED
    from napari_shmoareg.io.files import stem

    timed, failed = _with_time_limit(trial, rows, pair)
    found = failed or run_isolated(timed)
    row = {
        "pair": pair,
        "moving": printable(stem(trial.moving)),
        "fixed": printable(stem(trial.fixed)),
        "method": trial.method,
    }
    row |= {key: found.get(key) for key in MEASURED}
    return {key: None if value != value else value for key, value in row.items()}


def _with_time_limit(
    trial: IsolatedRun, rows: Sequence[Mapping[str, Any]], pair: int
) -> tuple[IsolatedRun, Measurements | None]:
    """Set the time limit of a timed method; return an error instead if it is unknown."""
    from napari_shmoareg.evaluation.methods import TIMED

    if trial.method not in TIMED:
        return trial, None
    other = next(
        row for row in rows if int(row["pair"]) == pair and row["method"] == TIMED[trial.method]
    )
    if not other["deforming_seconds"]:
        return trial, {
            "error": f"{other['method']} failed on this pair, so its run time is unknown"
        }
    return replace(trial, refine_seconds=float(other["deforming_seconds"])), None


def _files(pair: PairFiles) -> dict[str, Any]:
    """The files of a pair as fields of `IsolatedRun`."""
    return {
        name: None if path is None else str(path.resolve()) for name, path in vars(pair).items()
    }


def describe_row(row: Mapping[str, Any]) -> str:
    """Describe the result of a method on a pair in one line."""
    if row["error"]:
        return f"failed: {row['error']}"
    from napari_shmoareg.evaluation.comparison import FORMS
    from napari_shmoareg.metrics.measure import MEASURES

    return ", ".join(
        f"{MEASURES[key].words} {row[key]:{form}}"
        for key, form in FORMS.items()
        if row[key] is not None
    )


def results_table(summaries: Sequence[MethodSummary]) -> Table:
    """Table of means over pairs; summary.md also has the spread."""
    from napari_shmoareg.evaluation.comparison import FORMS
    from napari_shmoareg.metrics.measure import MEASURES

    columns = [key for key in FORMS if any(key in s.measures for s in summaries)]
    table = plain_table("means over pairs")
    table.add_column("", no_wrap=True)
    for name in ("pairs", *(MEASURES[key].words for key in columns), "worse"):
        table.add_column(name, justify="right", no_wrap=name == "pairs")
    for summary in summaries:
        means = (
            format(summary.measures[k].mean, FORMS[k]) if k in summary.measures else ""
            for k in columns
        )
        worse = f"{summary.worse} of {summary.compared}" if summary.compared else ""
        table.add_row(summary.method, summary.pair_count, *means, worse)
    return table
