"""Compare fine-tuned weights with the shipped ones and other methods on a test part.

    python benchmarks/fine_tuning.py OUT --run unsupervised=RUN --run "with labels=OTHER_RUN"
        [--weights "after 5 minutes=FILE.safetensors"] [--methods start affine syn] [--pairs 20]
    python benchmarks/fine_tuning.py OUT --dataset FOLDER --images 'images/*.nii.gz' --labels
    'labels/*.nii.gz'
        --split 60/10/10

All methods run in one process on the same pairs with the same scoring.  They take turns pair by
pair, so that drifts of the machine's speed affect all.  Each writes an evaluation folder in OUT,
like `shmoareg evaluate`; the table is OUT/table.md.  SyN needs antspyx (pip install
"shmoareg[peers]").  The same command resumes a stopped benchmark."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
COLUMNS = ("dice", "assd_mm", "hd95_mm", "folding_percent", "sdlogj", "seconds")


class Entry(NamedTuple):
    """A row of the table: name, method, and optional weights."""

    name: str
    method: str
    weights: str | None = None


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--run", action="append", default=[], type=parse_named_path, metavar="NAME=RUN"
    )
    parser.add_argument(
        "--weights", action="append", default=[], type=parse_named_path, metavar="NAME=FILE"
    )
    parser.add_argument("--methods", nargs="*", default=["start", "affine", "syn"])
    parser.add_argument("--shipped", default="small", help="shipped weights to compare with")
    parser.add_argument("--dataset", help="without a run; or the new path of the runs' data set")
    parser.add_argument("--images")
    parser.add_argument("--labels")
    parser.add_argument("--subject")
    parser.add_argument("--split", default="60/10/10")
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--part", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--pairs", type=int, help="number of pairs; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--affine", default=None, help="that of the runs by default, or auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--against", default="syn", help="row that the others are tested against")
    return parser.parse_args(words)


def parse_named_path(text: str) -> tuple[str, str]:
    """Parse NAME=PATH, or a path, whose own name is used."""
    name, mark, path = text.partition("=")
    return (name.strip(), path) if mark else (Path(text).name, text)


def main(words: Sequence[str] | None = None) -> None:
    """Register, measure, and write and print a Markdown table."""
    arguments = parse_arguments(words)
    os.environ |= dict.fromkeys(THREADS, str(arguments.threads))
    import torch

    from napari_shmoareg.evaluation.run import (
        EvaluationFolder,
        Shard,
        evaluate_cases,
        evaluation_plan,
        pairs_of,
        ready_method,
    )
    from napari_shmoareg.evaluation.tables import write_tables
    from napari_shmoareg.registration.resources import find_device

    torch.set_num_threads(arguments.threads)
    part, found, affine = chosen_part(arguments)
    entries = [Entry(name, name) for name in arguments.methods] + [
        Entry(name, "shmoareg", weights)
        for name, weights in (("shipped weights", arguments.shipped), *found, *arguments.weights)
    ]
    if len({entry.name for entry in entries}) < len(entries):
        sys.exit(
            f"Every row needs a unique name; got {', '.join(entry.name for entry in entries)}."
        )
    dataset = part.dataset.open()
    pairs = pairs_of(dataset, part, arguments.pairs, arguments.seed)
    work, device = [], find_device("auto").type
    for entry in entries:
        plan = evaluation_plan(part, pairs, entry.method, entry.weights, {"affine": affine})
        folder = EvaluationFolder(arguments.out / entry.name.replace(" ", "-").replace("/", "-"))
        folder.begin(plan)
        method = ready_method(entry.method, plan["settings"], entry.weights, device)
        work.append((entry, plan, method, folder))
    for number in range(1, len(pairs) + 1):
        for entry, plan, method, folder in work:
            evaluate_cases(
                folder,
                plan,
                dataset,
                method,
                Shard(number, len(pairs)),
                make_reporter(entry.name, len(pairs)),
            )
    done = {entry.name: (folder, write_tables(folder, plan)) for entry, plan, _, folder in work}
    text = table(
        done,
        arguments.against,
        f"{len(pairs)} pairs of the part '{part.name}' of {part.dataset.path}",
    )
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(any(written.failed for _, written in done.values()))


def chosen_part(arguments: argparse.Namespace) -> tuple[Any, list[tuple[str, str]], str]:
    """The scans to register, the best weights of each run by name, and the alignment."""
    from napari_shmoareg.datasets.dataset import DatasetChoice
    from napari_shmoareg.evaluation.run import Part, part_from_run, part_from_split

    options = {key: getattr(arguments, key) for key in ("images", "labels", "subject")}
    if not arguments.run:
        if arguments.dataset is None:
            sys.exit("Give --run or --dataset.")
        choice = DatasetChoice(arguments.dataset, **options)
        part = part_from_split(
            choice, choice.open(), arguments.part, arguments.split, arguments.split_seed
        )
        return part, [], arguments.affine or "auto"
    runs = [(name, part_from_run(path, arguments.part)) for name, path in arguments.run]
    first = runs[0][1]
    for name, run in runs:
        if run.part.scans != first.part.scans:
            sys.exit(
                f"The runs '{name}' and '{runs[0][0]}' have different {arguments.part} parts: they"
                " cannot share a table."
            )
        if run.weights is None:
            sys.exit(f"The run '{name}' has no weights yet.")
    choice = first.part.dataset
    if arguments.dataset is not None:
        choice = DatasetChoice(arguments.dataset, **choice.options)
    part = Part(choice, first.part.name, first.part.split, first.part.scans)
    return (
        part,
        [(name, run.weights) for name, run in runs if run.weights],
        arguments.affine or first.affine,
    )


def make_reporter(name: str, pairs: int) -> Any:
    """Make a callback that prints each pair on stderr."""
    from napari_shmoareg.cli.evaluate import describe_case

    def report_case(case: Mapping[str, Any] | None, word: str) -> None:
        print(
            word
            if case is None
            else f"pair {case['number']} of {pairs}, {name}: {describe_case(case)}",
            file=sys.stderr,
        )

    return report_case


def table(done: Mapping[str, Any], against: str, about: str) -> str:
    """Markdown table: a row per entry, mean ± SD over pairs, p of its Dice against one row."""
    from napari_shmoareg.evaluation.comparison import CAUTION, PAIRS, SUBJECTS, compare
    from napari_shmoareg.evaluation.tables import ALL
    from napari_shmoareg.metrics.measure import MEASURES, pair_rows

    rows = {
        name: [row for case in folder.read_cases(folder.read_plan())[0] for row in pair_rows(case)]
        for name, (folder, _) in done.items()
    }
    heads = ["", "pairs", *(MEASURES[name].words for name in COLUMNS)]
    tested = against in done
    heads += [f"p of Dice against {against}, over pairs", "over fixed subjects"] if tested else []
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name, (_, written) in done.items():
        cells = {
            s.measure: s.text for s in written.summaries if (s.stage, s.label) == ("after", ALL)
        }
        count = f"{written.done - written.failed}" + (
            f" ({written.failed} failed)" if written.failed else ""
        )
        tests = compare(rows[name], rows[against]) if tested else []
        found = {t.over: f"{t.p:.2g}" for t in tests if t.measure == "dice" and t.n > t.equal}
        ps = (
            [found.get(over, "") if name != against else "" for over in (PAIRS, SUBJECTS)]
            if tested
            else []
        )
        lines.append(
            "| " + " | ".join([name, count, *(cells.get(key, "") for key in COLUMNS), *ps]) + " |"
        )
    words = (
        "Mean ± SD over pairs, after registration; Dice and distances are means over the labels of"
        " a pair, on the fixed grid."
    )
    definitions = "\n".join(
        f"- **{MEASURES[key].words}**: {MEASURES[key].definition}" for key in COLUMNS
    )
    page = next(iter(done.values()))[0].path / "summary.md"
    machine = page.read_text(encoding="utf-8").partition("## Machine and versions")[2].strip()
    parts = [
        about,
        "\n".join(lines),
        f"{words} {CAUTION if tested else ''}".strip(),
        definitions,
        machine,
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
