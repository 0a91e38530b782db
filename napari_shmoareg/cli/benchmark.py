"""``shmoareg benchmark``: methods beside each other, on the same pairs, by the same scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.benchmark_folder import (
    MEASURED,
    PLOT,
    ROWS,
    SUMMARY,
    begin,
    make_plan,
    read_rows,
    results_table,
    told,
    write_results,
)
from napari_shmoareg.cli.benchmark_options import (
    Change,
    check_used,
    chosen_gamma,
    chosen_methods,
    chosen_pairs,
    cpus,
    default_steps,
    unigradicon_weights_for,
    weights_for,
)
from napari_shmoareg.cli.errors import CANCELLED, say
from napari_shmoareg.cli.options import (
    Channel,
    Contrast,
    ContrastOption,
    Debug,
    Device,
    DeviceOption,
    DiffeomorphicOption,
    Nan,
    Quiet,
    Similarity,
    SimilarityOption,
    Size,
    Smoothness,
    SmoothnessOption,
    UniGradICONWeights,
    Weights,
)
from napari_shmoareg.cli.tables import show
from napari_shmoareg.cli.trial import Measured, Trial, run_trial
from napari_shmoareg.io.untrusted import printable

if TYPE_CHECKING:
    from napari_shmoareg.io.datasets import PairFiles

DEFAULT = "shmoareg,shmoareg+refine,demons,affine"


def benchmark(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="A CSV list (columns moving, fixed, moving_labels, fixed_labels, landmarks; the last: a CSV file of "
            "x,y,z in the fixed image and in the moving one, mm, LPS), or a folder with --images.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for the results. Goes on where it is.")],
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="A,B,...",
            help="Of shmoareg, shmoareg+refine, affine+refine (no network), affine+refine@shmoareg (that, ended after "
            "the seconds of shmoareg's network), affine+refine:balanced and affine+refine:smooth (smoother), affine, "
            "demons, syn, greedy, convexadam (these three need "
            'pip install "shmoareg[peers]"), unigradicon (needs pip install icon_registration), niftyreg (needs its '
            "programs on the PATH). The start (headers alone) is always scored.",
        ),
    ] = DEFAULT,
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="PATTERN", help="Of a folder: its images, such as 'images/*.nii.gz'."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="PATTERN", help="Of a folder: their label maps, in the same order of names."),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option("--pairs", min=1, help="Only so many, each image as often as the others.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which pairs.")] = 1,
    change: Annotated[
        Change, typer.Option("--change", help="Change the moving image's intensities, for every method.")
    ] = Change.none,
    gamma: Annotated[
        float | None,
        typer.Option("--gamma", min=0.01, help="The exponent of --change gamma.", show_default="0.5"),
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option("--refine", metavar="STEPS", min=1, help="Of methods that refine.", show_default="the engine's"),
    ] = None,
    similarity: SimilarityOption = Similarity.auto,
    weights: Weights = None,
    unigradicon_weights: UniGradICONWeights = None,
    size: Size = None,
    diffeomorphic: DiffeomorphicOption = None,
    contrast: ContrastOption = Contrast.auto,
    smoothness: SmoothnessOption = Smoothness.accurate,
    device: DeviceOption = Device.auto,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of every method.", show_default="all")
    ] = None,
    surface: Annotated[
        bool, typer.Option("--surface/--no-surface", help="Measure surface distances too (ASSD, HD95; slow).")
    ] = False,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare registration methods on the same pairs.

    Each method registers each pair in a process of its own, one after the other; the same scorer measures the
    displacement that comes out.  DIR gets pairs.csv (a row per pair and method), summary.md and plot.png.
    A method that fails leaves a row with the error.  Ctrl-C keeps the rows; the same command goes on.
    """
    names = chosen_methods(methods)
    check_used(
        names,
        refined={"--refine": refine, "--similarity": None if similarity is Similarity.auto else similarity},
        network={"--weights": weights},
        unigradicon={"--unigradicon-weights": unigradicon_weights},
        own={
            "--size": size,
            "--diffeomorphic": diffeomorphic,
            "--contrast": None if contrast is Contrast.auto else contrast,
            "--smoothness": None if smoothness is Smoothness.accurate else smoothness,
        },
    )
    exponent = chosen_gamma(change, gamma)
    chosen = chosen_pairs(dataset, images, labels, (pairs, seed), quiet)
    common = Trial(
        method="start",
        moving="",
        fixed="",
        change=change.value,
        gamma=exponent,
        weights=weights_for(names, weights, device),
        unigradicon_weights=unigradicon_weights_for(names, unigradicon_weights),
        size=size,
        diffeomorphic=diffeomorphic,
        device=device.value,
        refine=refine or default_steps(),
        similarity=similarity.value,
        contrast=contrast.value,
        smoothness=smoothness.value,
        threads=threads or cpus(),
        surface=surface,
        nan=nan,
        channel=channel,
    )
    trials = [replace(common, method=name, **_files(pair)) for pair in chosen for name in names]
    plan = make_plan(common, names, trials)
    begin(out, plan)
    rows = read_rows(out)
    try:
        run_all(trials, len(names), rows, out, quiet)
    except KeyboardInterrupt:
        write_results(out, rows, plan)
        say(f"Stopped after {len(rows)} of {len(trials)} runs; {out} holds them. The same command goes on.")
        raise typer.Exit(CANCELLED) from None
    summaries = write_results(out, rows, plan)
    if not quiet:
        show(results_table(summaries))
        typer.echo(f"\nResults in {out}: {ROWS}, {SUMMARY}, {PLOT}")


def run_all(trials: Sequence[Trial], methods: int, rows: list[dict[str, Any]], out: Path, quiet: bool) -> None:
    """Run what has no row yet; each row is on the disk before the next begins."""
    from napari_shmoareg.io.atomic import stem
    from napari_shmoareg.io.tables import write_table

    done = {(int(row["pair"]), row["method"]) for row in rows}
    for number, trial in enumerate(trials):
        pair = number // methods + 1
        if (pair, trial.method) in done:
            continue
        timed, failed = _timed(trial, rows, pair)
        found: Measured = failed or run_trial(timed)
        row = {
            "pair": pair,
            "moving": printable(stem(trial.moving)),
            "fixed": printable(stem(trial.fixed)),
            "method": trial.method,
        }
        rows.append(row | {key: "" if found.get(key) is None else found[key] for key in MEASURED})
        write_table(rows, out / ROWS)
        if not quiet:
            typer.echo(f"pair {pair} of {len(trials) // methods}, {trial.method}: {told(found)}", err=True)


def _timed(trial: Trial, rows: Sequence[Mapping[str, Any]], pair: int) -> tuple[Trial, Measured | None]:
    """The trial with the seconds that its refinement may take; why it cannot run, if those are not known."""
    from napari_shmoareg.engine.peers import TIMED

    if trial.method not in TIMED:
        return trial, None
    other = next(row for row in rows if int(row["pair"]) == pair and row["method"] == TIMED[trial.method])
    if not other["deforming_seconds"]:
        return trial, {"error": f"{other['method']} failed on this pair, and its seconds were to be taken"}
    return replace(trial, seconds=float(other["deforming_seconds"])), None


def _files(pair: PairFiles) -> dict[str, Any]:
    """The files of a pair, by the names that a trial has for them."""
    return {name: None if path is None else str(path.resolve()) for name, path in vars(pair).items()}
