"""``shmoareg evaluate``: the accuracy of weights on a data set, in tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.console import CANCELLED, FAILED, say, show
from napari_shmoareg.cli.evaluate_options import (
    Chosen,
    DatasetArgument,
    EvaluationRequest,
    Images,
    KindOption,
    Labels,
    PartOption,
    Run,
    ShardOption,
    SplitOption,
    Subject,
    WindowOption,
    chosen_scans,
    weights_for,
)
from napari_shmoareg.cli.jobs import (
    ClusterOptions,
    ProcessesOption,
    ShardsOption,
    Sharing,
    SubmitOption,
)
from napari_shmoareg.cli.launch import words_of
from napari_shmoareg.cli.options import (
    REGISTRATION,
    Channel,
    Debug,
    Kind,
    Nan,
    Quiet,
    UniGradICONWeights,
    Weights,
    settings_in,
    with_settings,
)
from napari_shmoareg.settings import RegistrationSettings

if TYPE_CHECKING:
    from rich.table import Table

    from napari_shmoareg.evaluation.comparison import PairedTest
    from napari_shmoareg.evaluation.tables import Summary, Written


SHOWN_LABELS = 8


def told(case: Mapping[str, Any]) -> str:
    """What one pair came to, on one line."""
    if case["error"]:
        return f"failed: {case['error']}"
    start, after = (case["stages"][stage]["means"] for stage in ("start", "after"))
    key, words = ("dice", "Dice") if _is_number(after.get("dice")) else ("ncc", "NCC")
    before = f"{start[key]:.3f}" if _is_number(start.get(key)) else "unknown"
    value = f"{after[key]:.3f}" if _is_number(after.get(key)) else "unknown"
    over = ""
    if key == "dice" and (labels := case.get("labels")):
        lacking = sorted((*labels["only_moving"], *labels["only_fixed"]))
        named = ", ".join(map(str, lacking[:SHOWN_LABELS])) + (
            " ..." if len(lacking) > SHOWN_LABELS else ""
        )
        over = f" over {len(labels['both'])} labels" + (
            f" (in one image only: {named})" if lacking else ""
        )
    return f"{words} {before} to {value}{over}, {case['seconds']:.1f} s"


def show_results(written: Written, out: Path, tests: tuple[list[PairedTest], Path] | None) -> None:
    """Means over pairs, where the tables are, and the outcome of a comparison."""
    if written.summaries:
        show(results_table(written.summaries))
    state = (
        ""
        if written.done >= written.pairs
        else f" (so far {written.done} of {written.pairs} pairs)"
    )
    typer.echo(f"\nResults in {out}{state}: summary.md, summary.csv, pairs.csv, labels.csv")
    if tests is None:
        return
    found, page = tests
    typer.echo("")
    from napari_shmoareg.metrics.measure import MEASURES

    for test in found:
        typer.echo(f"{MEASURES[test.measure].words}, over {test.over}: {test.says}")
    typer.echo(f"Written to {page}")


def results_table(summaries: list[Summary]) -> Table:
    """Mean ± SD over pairs: a row per measure, a column per stage."""
    from rich.table import Table

    from napari_shmoareg.evaluation.tables import ALL, STAGE_WORDS
    from napari_shmoareg.metrics.measure import MEASURES, STAGES

    chosen = {(s.measure, s.stage): s for s in summaries if s.label == ALL}
    stages = [stage for stage in STAGES if any(s == stage for _, s in chosen)]
    most = max(s.n for s in chosen.values())
    table = Table(
        title=f"mean ± SD over {most} pairs", box=None, pad_edge=False, header_style="bold"
    )
    table.add_column("", no_wrap=True)
    for stage in stages:
        table.add_column(STAGE_WORDS[stage], justify="right")
    for measure, about in MEASURES.items():
        found = [chosen.get((measure, stage)) for stage in stages]
        if any(found):
            table.add_row(about.words, *("" if s is None else s.written for s in found))
    return table


def _is_number(value: float | None) -> bool:
    return value is not None and value == value


@partial(
    with_settings,
    settings=REGISTRATION,
    without=("keep",),
    default={"affine": "auto, or as the run had it"},
)
def evaluate(
    ctx: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="TABLE", help="The folder for the tables. Goes on where it is."
        ),
    ],
    dataset: DatasetArgument = None,
    weights: Weights = None,
    unigradicon_weights: UniGradICONWeights = None,
    run: Run = None,
    part: PartOption = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help=(
                "shmoareg, shmoareg+refine, affine+refine (no network), start, affine, demons; syn,"
                " greedy and "
                'convexadam need pip install "shmoareg[peers]", unigradicon needs pip install'
                " icon_registration, niftyreg "
                "needs its programs on the PATH."
            ),
        ),
    ] = "shmoareg",
    images: Images = None,
    labels: Labels = None,
    subject: Subject = None,
    kind: KindOption = Kind.auto,
    window: WindowOption = None,
    split: SplitOption = None,
    split_seed: Annotated[
        int, typer.Option("--split-seed", min=0, help="Decides who stands where.")
    ] = 0,
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs",
            min=1,
            help="Only so many, each scan as often as the others.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which pairs.")] = 1,
    surface: Annotated[
        bool,
        typer.Option("--surface/--no-surface", help="Measure surface distances (ASSD, HD95) too."),
    ] = True,
    definitions: Annotated[
        bool,
        typer.Option(
            "--definitions", help="Measure the other definitions that go by these names, too."
        ),
    ] = False,
    shard: ShardOption = None,
    processes: ProcessesOption = 1,
    submit: SubmitOption = None,
    shards: ShardsOption = 1,
    cluster_option: ClusterOptions = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="TABLE",
            help="Test the result against another evaluation (Wilcoxon).",
        ),
    ] = None,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Register and measure every pair of a data set, or of a part of it.

    TABLE gets summary.md and summary.csv (mean ± SD of Dice, ASSD, HD95, folding, SDlogJ, seconds;
    at the start, after the affine, after all; per label), pairs.csv and labels.csv.  A pair that
    fails is told, kept with its error, and tried again by the same command.  Ctrl-C keeps what is
    done; the same command goes on."""
    options = {"images": images, "labels": labels, "subject": subject, "window": window, "nan": nan}
    options |= {"channel": channel, "kind": None if kind is Kind.auto else kind.value}
    asked = EvaluationRequest(
        dataset, run, None if part is None else part.value, options, split, split_seed
    )
    settings = settings_in(given, RegistrationSettings)
    settings |= {"surface": surface, "definitions": definitions}
    cluster = None if submit is None else submit.value
    sharing = Sharing(tuple(words_of(ctx)), processes, cluster, tuple(cluster_option or ()), shards)
    by = (method.strip().lower(), weights, unigradicon_weights)
    work(asked, by, (pairs, seed), settings, out, shard, sharing, against, quiet)


def work(
    asked: EvaluationRequest,
    by: tuple[str, str | None, Path | None],
    count: tuple[int | None, int],
    settings: Mapping[str, Any],
    out: Path,
    shard: Any,
    sharing: Sharing,
    against: Path | None,
    quiet: bool,
) -> None:
    """Choose, check, run, write and tell.

    Parameters
    ----------
    asked : EvaluationRequest
    by : (method, weights or None, uniGradICON's weights or None)
    count : (pairs or None, seed)
    settings, out, shard, sharing, against, quiet
        As of the command.
    """
    from napari_shmoareg.evaluation.baselines import evaluated_method
    from napari_shmoareg.evaluation.methods import NETWORKS, check_available
    from napari_shmoareg.evaluation.run import (
        SETTINGS,
        EvaluationFolder,
        Shard,
        evaluate_cases,
        evaluation_plan,
        pairs_of,
    )
    from napari_shmoareg.evaluation.tables import comparison_file, write_comparison, write_tables
    from napari_shmoareg.io import load_network
    from napari_shmoareg.io.model_card import chosen_device

    sharing.check(shard)
    name, asked_weights, unigradicon_weights = by
    check_available(name)
    where = chosen_device(settings.get("device", "auto"))
    other = None if against is None else EvaluationFolder(against)
    if other is not None:
        other.read_plan()
        comparison_file(EvaluationFolder(out), other)
    chosen = chosen_scans(asked)
    weights = weights_for(name, asked_weights, unigradicon_weights, chosen, where)
    options = SETTINGS | {"affine": chosen.affine or "auto"} | dict(settings)
    pairs = pairs_of(chosen.dataset, chosen.part, *count)
    network = (
        None if weights is None or name not in NETWORKS else load_network(weights, device=where)
    )
    method = evaluated_method(name, options | {"unigradicon_weights": weights}, network)
    plan = evaluation_plan(chosen.part, pairs, name, weights, options)
    folder, share = EvaluationFolder(out), Shard(*(shard or (1, 1)))
    folder.begin(plan)
    if not quiet:
        _say_beginning(chosen, weights, len(pairs), share.share(len(pairs)), shard)
    if sharing.submit is not None:
        sharing.hand_over(out)
        return
    try:
        if sharing.processes > 1:
            sharing.run(where)
        cases = evaluate_cases(
            folder,
            plan,
            chosen.dataset,
            method,
            share,
            lambda case, word: _tell(case, word, len(pairs), quiet),
        )
    except KeyboardInterrupt:
        written = write_tables(folder, plan)
        say(
            f"Stopped: {written.done} of {written.pairs} pairs are in {out}. The same command"
            " goes on."
        )
        raise typer.Exit(CANCELLED) from None
    written = write_tables(folder, plan)
    for text in written.damaged:
        say(f"Warning: {text} The shard that it belongs to registers it again.")
    tests = None if other is None else write_comparison(folder, other)
    if not quiet:
        show_results(written, out, tests)
    failed = sum(bool(case["error"]) for case in cases)
    if failed:
        say(
            f"{failed} of {len(cases)} pairs failed; {out} says why. The same command tries them"
            " again."
        )
        raise typer.Exit(FAILED)


def _say_beginning(
    chosen: Chosen, weights: str | None, pairs: int, share: list[int], shard: Any
) -> None:
    """What is about to be done, on stderr."""
    mine = "" if shard is None else f"; shard {shard[0]} of {shard[1]} has {len(share)} of them"
    count = "one pair" if pairs == 1 else f"{pairs} pairs"
    say(
        f"{count} of the part '{chosen.part.name}' of {chosen.dataset.root} (split:"
        f" {chosen.part.split}){mine}."
    )
    if weights is not None and _is_last_of_run(weights, chosen):
        say(
            f"{chosen.run} has no best.safetensors: the weights of its last saved step are taken,"
            f" {weights}."
        )
    if chosen.dataset.skipped:
        first = chosen.dataset.skipped[0]
        say(
            f"{len(chosen.dataset.skipped)} files are no part of it, such as {first.path}:"
            f" {first.why}"
        )
    scans = (
        chosen.dataset.scans
        if chosen.part.scans is None
        else map(chosen.dataset.scan, chosen.part.scans)
    )
    bare = sum(scan.labels is None for scan in scans)
    if bare:
        say(
            f"{bare} of its scans have no labels: of their pairs, correlation and folding are"
            " measured, no overlap."
        )


def _is_last_of_run(weights: str, chosen: Chosen) -> bool:
    """Whether these are a run's weights, and not its best."""
    if chosen.weights is None or Path(chosen.weights).resolve() != Path(weights).resolve():
        return False
    return Path(chosen.weights).name == "last.safetensors"


def _tell(case: Mapping[str, Any] | None, word: str, pairs: int, quiet: bool) -> None:
    """One pair on one line; failures and damage even if quiet."""
    if case is None:
        say(f"Warning: {word}")
    elif case["error"] or not quiet:
        say(
            f"pair {case['number']} of {pairs}, {case['moving']} onto {case['fixed']}: {told(case)}"
        )
