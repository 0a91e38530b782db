"""``shmoareg benchmark``: registration methods on the same pairs, by one scorer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
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
from napari_shmoareg.cli.console import CANCELLED, say, show
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
from napari_shmoareg.evaluation.isolated_run import IsolatedRun, Measured, run_trial
from napari_shmoareg.io.untrusted import printable, user_path
from napari_shmoareg.settings import RegistrationSettings

if TYPE_CHECKING:
    from napari_shmoareg.datasets import PairFiles


class Change(StrEnum):
    """What is done to the moving image's intensities."""

    none = "none"
    invert = "invert"
    gamma = "gamma"


def chosen_methods(text: str) -> list[str]:
    """The names of ``--methods``, the start before them.

    Raises
    ------
    InputError
        If one is not known or not installed.
    """
    from napari_shmoareg.evaluation.methods import START, TIMED, check_available

    names = list(
        dict.fromkeys([START, *(name.strip().lower() for name in text.split(",") if name.strip())])
    )
    for name in names:
        check_available(name)
        if name in TIMED and TIMED[name] not in names[: names.index(name)]:
            raise InputError(
                f"The method '{name}' takes the seconds of {TIMED[name]}: name that before it in"
                " --methods."
            )
    return names


def check_used(
    names: Sequence[str],
    *,
    refined: Mapping[str, object],
    network: Mapping[str, object],
    unigradicon: Mapping[str, object],
    own: Mapping[str, object],
) -> None:
    """Refuse what was asked of a method that does not run.

    Parameters
    ----------
    names : sequence of str
        The methods.
    refined, network, unigradicon, own : dict of option to value
        What only `REFINED` uses, what our networks use, what that peer uses, and what all of our
        own use; None is not given.

    Raises
    ------
    InputError
        With the option and the method that is missing.
    """
    from napari_shmoareg.evaluation.methods import NETWORKS, REFINED, SMOOTHER, TIMED

    both = dict.fromkeys((*NETWORKS, *REFINED))
    used = (
        (refined, REFINED),
        (network, NETWORKS),
        (unigradicon, ("unigradicon",)),
        (own, tuple(both)),
    )
    for options, methods in used:
        given = [option for option, value in options.items() if value is not None]
        if given and not set(names) & set(methods):
            named = " and no ".join(name for name in methods if name not in (*TIMED, *SMOOTHER))
            raise InputError(
                f"{' and '.join(given)} would do nothing: --methods names no {named}. Add it there,"
                " or leave the option out."
            )


def chosen_gamma(change: Change, asked: float | None) -> float:
    """The exponent.

    Raises
    ------
    InputError
        If one was asked for and nothing uses it.
    """
    from napari_shmoareg.evaluation.methods import GAMMA

    if asked is not None and change is not Change.gamma:
        raise InputError(
            "--gamma would do nothing without --change gamma. Add that, or leave --gamma out."
        )
    return GAMMA if asked is None else asked


def chosen_pairs(
    dataset: Path,
    images: str | None,
    labels: str | None,
    choice: tuple[int | None, int],
    quiet: bool,
) -> tuple[PairFiles, ...]:
    """The pairs of a list or a folder, and a word on how they were chosen.

    Raises
    ------
    InputError
        If a folder has no pattern of images, or a list has one; and as `read_folder` and
        `read_pair_list`.
    """
    from napari_shmoareg.datasets import choose_pairs, read_folder, read_pair_list

    if dataset.is_dir():
        if images is None:
            raise InputError(
                f"{dataset} is a folder: say which of its files are images, as --images"
                " 'images/*.nii.gz'."
            )
        files = read_folder(dataset, images, labels)
        how = "all ordered pairs of its images"
    else:
        if images or labels:
            raise InputError(f"--images and --labels are for a folder, but {dataset} is none.")
        files, how = read_pair_list(dataset).files, "the pairs of the list"
    count, seed = choice
    if count is None or count >= len(files):
        told, chosen = f"{len(files)} pairs: {how}.", files
    else:
        chosen = choose_pairs(files, count, seed)
        counted = Counter(path for pair in chosen for path in (pair.moving, pair.fixed))
        uses = [
            counted[path] for path in {path for pair in files for path in (pair.moving, pair.fixed)}
        ]
        told = (
            f"{count} of {len(files)} pairs ({how}), chosen by --seed {seed} so that each image is"
            f" used as evenly as possible: {min(uses)} to {max(uses)} times."
        )
    if not quiet:
        say(told)
    return chosen


def weights_for(names: Sequence[str], asked: str | None, device: str) -> str | None:
    """The weights, if a method needs some; what every run would fail by is refused before hours of
    work.
    """
    from napari_shmoareg.evaluation.methods import NETWORKS

    if not set(names) & set(NETWORKS):
        return None
    from napari_shmoareg.io import read_card, shipped_weights
    from napari_shmoareg.io.model_card import chosen_device, chosen_weights

    name, _ = chosen_weights(asked, chosen_device(device))
    read_card(name)
    return name if name in shipped_weights() else str(user_path(name).resolve())


def unigradicon_weights_for(names: Sequence[str], asked: Path | None) -> str | None:
    """The file of uniGradICON's weights, if that method is named; what every run would fail by is
    refused before.
    """
    if "unigradicon" not in names:
        return None
    from napari_shmoareg.evaluation.methods import load_method

    file = None if asked is None else str(user_path(asked).resolve())
    load_method("unigradicon", unigradicon_weights=file, device="cpu")
    return file


def default_steps() -> int:
    """Of a refinement, where none were asked for."""
    from napari_shmoareg.registration.refinement import DEFAULT_STEPS

    return DEFAULT_STEPS


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


DEFAULT = "shmoareg,shmoareg+refine,demons,affine"


@partial(with_settings, settings=REGISTRATION, without=("affine", "keep"))
def benchmark(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help=(
                "A CSV list (columns moving, fixed, moving_labels, fixed_labels, landmarks; the"
                " last: a CSV file of "
                "x,y,z in the fixed image and in the moving one, mm, LPS), or a folder with"
                " --images."
            ),
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="The folder for the results. Goes on where it is."
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="A,B,...",
            help=(
                "Of shmoareg, shmoareg+refine, affine+refine (no network), affine+refine@shmoareg"
                " (that, ended after "
                "the seconds of shmoareg's network), affine+refine:balanced and"
                " affine+refine:smooth (smoother), affine, "
                "demons, syn, greedy, convexadam (these three need "
                'pip install "shmoareg[peers]"), unigradicon (needs pip install icon_registration),'
                " niftyreg (needs its "
                "programs on the PATH). The start (headers alone) is always scored."
            ),
        ),
    ] = DEFAULT,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="PATTERN",
            help="Of a folder: its images, such as 'images/*.nii.gz'.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="PATTERN",
            help="Of a folder: their label maps, in the same order of names.",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs",
            min=1,
            help="Only so many, each image as often as the others.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which pairs.")] = 1,
    change: Annotated[
        Change,
        typer.Option("--change", help="Change the moving image's intensities, for every method."),
    ] = Change.none,
    gamma: Annotated[
        float | None,
        typer.Option(
            "--gamma", min=0.01, help="The exponent of --change gamma.", show_default="0.5"
        ),
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(
            "--refine",
            metavar="STEPS",
            min=1,
            help="Of methods that refine.",
            show_default="the engine's",
        ),
    ] = None,
    weights: Weights = None,
    unigradicon_weights: UniGradICONWeights = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of every method.", show_default="all")
    ] = None,
    surface: Annotated[
        bool,
        typer.Option(
            "--surface/--no-surface", help="Measure surface distances too (ASSD, HD95; slow)."
        ),
    ] = False,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Compare registration methods on the same pairs.

    Each method registers each pair in a process of its own, one after the other; the same scorer
    measures the displacement that comes out.  DIR gets pairs.csv (a row per pair and method),
    summary.md and plot.png. A method that fails leaves a row with the error.  Ctrl-C keeps the
    rows; the same command goes on."""
    names = chosen_methods(methods)
    settings, defaults = settings_in(given, RegistrationSettings), vars(RegistrationSettings())
    changed = {f"--{key}": value for key, value in settings.items() if value != defaults[key]}
    check_used(
        names,
        refined={"--refine": refine, "--similarity": changed.pop("--similarity", None)},
        network={"--weights": weights},
        unigradicon={"--unigradicon-weights": unigradicon_weights},
        own={name: value for name, value in changed.items() if name != "--device"},
    )
    exponent = chosen_gamma(change, gamma)
    chosen = chosen_pairs(dataset, images, labels, (pairs, seed), quiet)
    common = IsolatedRun(
        method="start",
        moving="",
        fixed="",
        change=change.value,
        gamma=exponent,
        weights=weights_for(names, weights, settings.get("device", "auto")),
        unigradicon_weights=unigradicon_weights_for(names, unigradicon_weights),
        refine=refine or default_steps(),
        threads=threads or cpus(),
        surface=surface,
        nan=nan,
        channel=channel,
        **settings,
    )
    trials = [replace(common, method=name, **_files(pair)) for pair in chosen for name in names]
    plan = make_plan(common, names, trials)
    begin(out, plan)
    rows = read_rows(out)
    try:
        run_all(trials, len(names), rows, out, quiet)
    except KeyboardInterrupt:
        write_results(out, rows, plan)
        say(
            f"Stopped after {len(rows)} of {len(trials)} runs; {out} holds them. The same command"
            " goes on."
        )
        raise typer.Exit(CANCELLED) from None
    summaries = write_results(out, rows, plan)
    if not quiet:
        show(results_table(summaries))
        typer.echo(f"\nResults in {out}: {ROWS}, {SUMMARY}, {PLOT}")


def run_all(
    trials: Sequence[IsolatedRun], methods: int, rows: list[dict[str, Any]], out: Path, quiet: bool
) -> None:
    """Run what has no row yet; each row is on the disk before the next begins."""
    from napari_shmoareg.io.files import stem, write_table

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
            typer.echo(
                f"pair {pair} of {len(trials) // methods}, {trial.method}: {told(found)}", err=True
            )


def _timed(
    trial: IsolatedRun, rows: Sequence[Mapping[str, Any]], pair: int
) -> tuple[IsolatedRun, Measured | None]:
    """The trial with the seconds that its refinement may take; why it cannot run, if those are not
    known.
    """
    from napari_shmoareg.evaluation.methods import TIMED

    if trial.method not in TIMED:
        return trial, None
    other = next(
        row for row in rows if int(row["pair"]) == pair and row["method"] == TIMED[trial.method]
    )
    if not other["deforming_seconds"]:
        return trial, {
            "error": f"{other['method']} failed on this pair, and its seconds were to be taken"
        }
    return replace(trial, refine_seconds=float(other["deforming_seconds"])), None


def _files(pair: PairFiles) -> dict[str, Any]:
    """The files of a pair, by the names that a trial has for them."""
    return {
        name: None if path is None else str(path.resolve()) for name, path in vars(pair).items()
    }
