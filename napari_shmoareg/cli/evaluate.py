"""``shmoareg evaluate``: tables of the accuracy on a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.console import FAILED, plain_table, print_note, resumable, show
from napari_shmoareg.cli.jobs import (
    ClusterOptions,
    ProcessesOption,
    ShardsOption,
    Sharing,
    SubmitOption,
)
from napari_shmoareg.cli.launch import command_words
from napari_shmoareg.cli.options import (
    REGISTRATION,
    Channel,
    Debug,
    Kind,
    LabelNamesFile,
    Nan,
    Quiet,
    UniGradICONWeights,
    Weights,
    parse_window,
    settings_in,
    with_settings,
)
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import user_path
from napari_shmoareg.settings import RegistrationSettings

if TYPE_CHECKING:
    from rich.table import Table

    from napari_shmoareg.datasets import Dataset
    from napari_shmoareg.evaluation.comparison import PairedTest
    from napari_shmoareg.evaluation.run import Part
    from napari_shmoareg.evaluation.tables import Naming, Summary, WrittenTables
    from napari_shmoareg.metrics.measure import Method


SHOWN_LABELS = 8


class PartName(StrEnum):
    """Part of a split."""

    train = "train"
    validation = "validation"
    test = "test"
    all = "all"


def parse_shard(text: str) -> tuple[int, int]:
    """Parse ``--shard``: number and count."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise typer.BadParameter(f"'{text}' is not I/N with I from 1 to N, such as 2/8")
    return number, of


DatasetArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATASET",
        help=(
            "A folder of images, a CSV or JSON list of pairs, a Learn2Reg data set, OASIS or BTCV."
        ),
        show_default="that of --run",
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="A fine-tune run: use its data set, its split and its best weights.",
    ),
]
PartOption = Annotated[
    PartName | None,
    typer.Option(
        "--part",
        help="Part of the split.",
        show_default="test if there is a split, else all",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="PATTERN",
        help="For a folder: pattern of its images, such as 'images/*.nii.gz'.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels", metavar="PATTERN", help="For a folder: pattern of the label maps of its images."
    ),
]
Subject = Annotated[
    str | None,
    typer.Option(
        "--subject",
        metavar="REGEX",
        help="Finds the subject in a scan's name: the first group, or the whole match.",
    ),
]
KindOption = Annotated[
    Kind, typer.Option("--kind", help="Layout of the data set; auto detects it.")
]
WindowOption = Annotated[
    str | None,  # two numbers: `parse_window`
    typer.Option(
        "--window",
        metavar="LOW,HIGH",
        parser=parse_window,
        help="Clip intensities to this range, such as -160,240 for CT.",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="A/B/C",
        help="Subjects for training, validation and testing: 60/10/10, or shares.",
    ),
]
ShardOption = Annotated[
    str | None,  # two numbers: `parse_shard`
    typer.Option(
        "--shard",
        metavar="I/N",
        parser=parse_shard,
        help=(
            "Only every N-th pair, starting with the I-th; N processes, each with its own I,"
            " share the work and the TABLE."
        ),
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="TABLE", help="Folder for the tables. An unfinished one is continued."
    ),
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help=(
            "shmoareg, shmoareg+refine, affine+refine (no network), start, affine, demons; syn,"
            ' greedy and convexadam need pip install "shmoareg[peers]", unigradicon needs pip'
            " install icon_registration, niftyreg needs its programs on the PATH."
        ),
    ),
]
SplitSeed = Annotated[int, typer.Option("--split-seed", min=0, help="Seed of the random split.")]
PairsOption = Annotated[
    int | None,
    typer.Option(
        "--pairs",
        min=1,
        help="Number of pairs; each scan is used about equally often.",
        show_default="all",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the selection of pairs.")]
SurfaceOption = Annotated[
    bool,
    typer.Option("--surface/--no-surface", help="Also measure surface distances (ASSD, HD95)."),
]
DefinitionsOption = Annotated[
    bool,
    typer.Option("--definitions", help="Also measure the other definitions of these measures."),
]
AgainstOption = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="TABLE",
        help="Compare with another evaluation (Wilcoxon test).",
    ),
]


@partial(
    with_settings,
    settings=REGISTRATION,
    without=("keep", "fill"),
    default={"affine": "auto, or that of the run"},
)
def evaluate(
    ctx: typer.Context,
    out: OutOption,
    dataset: DatasetArgument = None,
    weights: Weights = None,
    unigradicon_weights: UniGradICONWeights = None,
    run: Run = None,
    part: PartOption = None,
    method: MethodOption = "shmoareg",
    images: Images = None,
    labels: Labels = None,
    label_names: LabelNamesFile = None,
    subject: Subject = None,
    kind: KindOption = Kind.auto,
    window: WindowOption = None,
    split: SplitOption = None,
    split_seed: SplitSeed = 0,
    pairs: PairsOption = None,
    seed: SeedOption = 1,
    surface: SurfaceOption = True,
    definitions: DefinitionsOption = False,
    shard: ShardOption = None,
    processes: ProcessesOption = 1,
    submit: SubmitOption = None,
    shards: ShardsOption = 1,
    cluster_option: ClusterOptions = None,
    against: AgainstOption = None,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Register and measure all pairs of a data set, or of a part of it.

    TABLE gets summary.md and summary.csv (mean ± SD of Dice, ASSD, HD95, folding, SDlogJ, seconds;
    at the start, after the affine, after registration; per label), pairs.csv and labels.csv. A pair
    that fails is reported, saved with its error, and tried again by the same command. Ctrl-C keeps
    what is done; the same command continues.
    """
    from napari_shmoareg.evaluation.methods import check_available
    from napari_shmoareg.evaluation.run import evaluation_plan, pairs_of, ready_method
    from napari_shmoareg.io.model_card import choose_device

    cluster = None if submit is None else submit.value
    sharing = Sharing(
        tuple(command_words(ctx)), processes, cluster, tuple(cluster_option or ()), shards
    )
    sharing.check(shard)
    name = method.strip().lower()
    check_available(name)
    options = {"images": images, "labels": labels, "subject": subject, "window": window, "nan": nan}
    options |= {"channel": channel, "kind": None if kind is Kind.auto else kind.value}
    chosen = select_scans(dataset, run, part, split, split_seed, options)
    naming = naming_of(chosen.dataset, label_names)
    own = settings_in(given, RegistrationSettings)
    device = choose_device(own.get("device", "auto"))
    used = weights_for(name, weights, unigradicon_weights, chosen, device)
    settings = {"affine": chosen.affine or "auto", **own}
    settings |= {"surface": surface, "definitions": definitions}
    ready = ready_method(name, settings, used, device)
    listed = pairs_of(chosen.dataset, chosen.part, pairs, seed)
    plan = evaluation_plan(chosen.part, listed, name, used, settings)
    run_evaluation(out, plan, ready, chosen, shard, sharing, against, quiet, naming)


def naming_of(dataset: Dataset, file: Path | None) -> Naming:
    """The names of a data set's labels: from a file, or as found for the first label map."""
    from napari_shmoareg.geometry import LabelNames
    from napari_shmoareg.io.label_names import find_label_names, read_label_names

    if file is not None:
        names = read_label_names(file)
        return lambda _labels: names
    first = next((scan.labels for scan in dataset.scans if scan.labels is not None), None)
    if first is None:
        return lambda _labels: LabelNames()
    return partial(find_label_names, first)


def run_evaluation(
    out: Path,
    plan: Mapping[str, Any],
    method: Method,
    chosen: Selection,
    shard: Any,
    sharing: Sharing,
    against: Path | None,
    quiet: bool,
    naming: Naming | None = None,
) -> None:
    """Evaluate the pairs that have no case yet, and write and show the results of all cases."""
    from napari_shmoareg.evaluation.run import EvaluationFolder, Shard, evaluate_cases
    from napari_shmoareg.evaluation.tables import comparison_file, write_comparison, write_tables
    from napari_shmoareg.io.model_card import choose_device

    folder, share = EvaluationFolder(out), Shard(*(shard or (1, 1)))
    other = None if against is None else EvaluationFolder(against)
    if other is not None:
        other.read_plan()
        comparison_file(folder, other)
    count = len(plan["pairs"])
    folder.begin(plan)
    if not quiet:
        _print_selection(chosen, plan["weights"], count, share.share(count), shard)
    if sharing.submit is not None:
        sharing.submit_shards(out)
        return
    with resumable(
        lambda: len(folder.snapshot()),
        count,
        out,
        finish=lambda: write_tables(folder, plan, naming),
    ):
        if sharing.processes > 1:
            sharing.run(choose_device(plan["settings"]["device"]))
        cases = evaluate_cases(
            folder,
            plan,
            chosen.dataset,
            method,
            share,
            lambda case, warning: _print_case(case, warning, count, quiet),
        )
    written = write_tables(folder, plan, naming)
    for text in written.damaged:
        print_note(f"Warning: {text} Its shard registers it again.")
    tests = None if other is None else write_comparison(folder, other)
    if not quiet:
        show_results(written, out, tests)
    failed = sum(bool(case["error"]) for case in cases)
    if failed:
        print_note(
            f"{failed} of {len(cases)} pairs failed; {out} has the errors. The same command"
            " tries them again."
        )
        raise typer.Exit(FAILED)


def _print_selection(
    chosen: Selection, weights: Mapping[str, str] | None, pairs: int, share: list[int], shard: Any
) -> None:
    """Print the selected pairs and warnings on stderr."""
    mine = "" if shard is None else f"; shard {shard[0]} of {shard[1]} has {len(share)} of them"
    count = "one pair" if pairs == 1 else f"{pairs} pairs"
    print_note(
        f"{count} of the part '{chosen.part.name}' of {chosen.dataset.root} (split:"
        f" {chosen.part.split}){mine}."
    )
    used = None if chosen.weights is None else Path(chosen.weights)
    if used is not None and weights is not None and used.name == "last.safetensors":
        if used.resolve() == Path(weights["name"]).resolve():
            print_note(
                f"{chosen.run} has no best.safetensors: the weights of its last saved step are"
                f" used, {weights['name']}."
            )
    if chosen.dataset.skipped:
        first = chosen.dataset.skipped[0]
        print_note(
            f"{len(chosen.dataset.skipped)} files are not part of it, such as {first.path}:"
            f" {first.why}"
        )
    scans = (
        chosen.dataset.scans
        if chosen.part.scans is None
        else map(chosen.dataset.scan, chosen.part.scans)
    )
    unlabelled = sum(scan.labels is None for scan in scans)
    if unlabelled:
        print_note(
            f"{unlabelled} of its scans have no labels: for their pairs, correlation and folding"
            " are measured, but no overlap."
        )


def _print_case(case: Mapping[str, Any] | None, warning: str, pairs: int, quiet: bool) -> None:
    """Print one pair in one line; failures and damaged cases even if quiet."""
    if case is None:
        print_note(f"Warning: {warning}")
    elif case["error"] or not quiet:
        print_note(
            f"pair {case['number']} of {pairs}, {case['moving']} onto {case['fixed']}:"
            f" {describe_case(case)}"
        )


@dataclass(frozen=True)
class Selection:
    """The data set and part that the options select.

    Attributes
    ----------
    dataset : Dataset
    part : Part
    run : Path or None
        The run that was given.
    weights, affine : str or None
        Those of the run; weights are None if it has none yet.
    """

    dataset: Dataset
    part: Part
    run: Path | None = None
    weights: str | None = None
    affine: str | None = None


def select_scans(
    data: Path | None,
    run: Path | None,
    part_name: PartName | None,
    split: str | None,
    split_seed: int,
    options: Mapping[str, Any],
) -> Selection:
    """Open the data set with options of `DatasetChoice` (None: not given), and select a part."""
    from napari_shmoareg.datasets.dataset import DatasetChoice
    from napari_shmoareg.evaluation.run import ALL, Part, part_from_run, part_from_split

    given = {name: value for name, value in options.items() if value is not None}
    requested = None if part_name is None else part_name.value
    if run is not None:
        if split is not None:
            raise InputError("--split and --run exclude each other: the run has its own split.")
        if given and data is None:
            names = ", ".join(f"--{name}" for name in given)
            raise InputError(
                f"{names}: the run defines how its data set is read. Leave it out, or give"
                " DATASET too."
            )
        found = part_from_run(run, requested or "test")
        choice = found.part.dataset
        if data is not None:  # moved since
            choice = DatasetChoice(str(data), **(choice.options | given))
        part = Part(choice, found.part.name, found.part.split, found.part.scans)
        return Selection(choice.open(), part, run, found.weights, found.affine)
    if data is None:
        raise InputError("Give a DATASET, or --run with a fine-tune run.")
    choice = DatasetChoice(str(data), **given)
    dataset = choice.open()
    name = requested or ("test" if split is not None else ALL)
    if name != ALL and split is None and dataset.parts is None:
        raise InputError(
            f"--part {name} needs a split, and the data set has none of its own: give --split"
            " 60/10/10 (or shares) with the --split-seed of the training, or --run."
        )
    return Selection(dataset, part_from_split(choice, dataset, name, split, split_seed))


def weights_for(
    method: str, given: str | None, file: Path | None, chosen: Selection, device: str
) -> str | None:
    """Resolve the weights of a method: the given ones, those of the run, or the shipped ones; for
    uniGradICON, its file.
    """
    from napari_shmoareg.evaluation.methods import NETWORKS

    if file is not None and method != "unigradicon":
        raise InputError(f"--unigradicon-weights would have no effect: the method is '{method}'.")
    if method not in NETWORKS:
        if given is not None:
            raise InputError(f"--weights would have no effect: the method '{method}' uses none.")
        return None if file is None else str(user_path(file).resolve())
    if given is None and chosen.run is not None and chosen.weights is None:
        raise InputError(
            f"{chosen.run} has no weights yet: continue the training, or give --weights."
        )
    return resolve_weights(given or chosen.weights, device)


def resolve_weights(weights: str | None, device: str) -> str:
    """Return the name of shipped weights (by default those for the device) or the absolute path of
    a file.
    """
    from napari_shmoareg.io import read_card, shipped_weights
    from napari_shmoareg.io.model_card import choose_device, choose_weights

    name, _ = choose_weights(weights, choose_device(device))
    read_card(name)
    return name if name in shipped_weights() else str(user_path(name).resolve())


def describe_case(case: Mapping[str, Any]) -> str:
    """Describe the result of one pair in one line."""
    if case["error"]:
        return f"failed: {case['error']}"
    start, after = (case["stages"][stage]["means"] for stage in ("start", "after"))
    key, words = ("dice", "Dice") if _is_number(after.get("dice")) else ("ncc", "NCC")
    before = f"{start[key]:.3f}" if _is_number(start.get(key)) else "unknown"
    value = f"{after[key]:.3f}" if _is_number(after.get(key)) else "unknown"
    over = ""
    if key == "dice" and (labels := case.get("labels")):
        missing = sorted((*labels["only_moving"], *labels["only_fixed"]))
        named = ", ".join(map(str, missing[:SHOWN_LABELS])) + (
            " ..." if len(missing) > SHOWN_LABELS else ""
        )
        over = f" over {len(labels['both'])} labels" + (
            f" (in one image only: {named})" if missing else ""
        )
    return f"{words} {before} to {value}{over}, {case['seconds']:.1f} s"


def show_results(
    written: WrittenTables, out: Path, tests: tuple[list[PairedTest], Path] | None
) -> None:
    """Print means over pairs, the paths of the tables, and the result of a comparison."""
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
        typer.echo(f"{MEASURES[test.measure].words}, over {test.over}: {test.sentence}")
    typer.echo(f"Written to {page}")


def results_table(summaries: list[Summary]) -> Table:
    """Table of mean ± SD over pairs: a row per measure, a column per stage."""
    from napari_shmoareg.evaluation.tables import ALL, STAGE_WORDS
    from napari_shmoareg.metrics.measure import MEASURES, STAGES

    chosen = {(s.measure, s.stage): s for s in summaries if s.label == ALL}
    stages = [stage for stage in STAGES if any(s == stage for _, s in chosen)]
    most = max(s.spread.n for s in chosen.values())
    table = plain_table(f"mean ± SD over {most} pairs")
    table.add_column("", no_wrap=True)
    for stage in stages:
        table.add_column(STAGE_WORDS[stage], justify="right")
    for measure, about in MEASURES.items():
        found = [chosen.get((measure, stage)) for stage in stages]
        if any(found):
            table.add_row(about.words, *("" if s is None else s.text for s in found))
    return table


def _is_number(value: float | None) -> bool:
    return value is not None and value == value
