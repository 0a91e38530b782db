"""Short training trials: effect of each option on Dice, routing matters and attention matters.

    python benchmarks/routing_trials.py OUT --data FOLDER [--arms baseline frozen-gates] [--seeds 0
    1 2]
        [--steps 120] [--size 32]
    python benchmarks/routing_trials.py --list
    python benchmarks/routing_trials.py OUT --table

FOLDER contains images/*.nii.gz and labels/*.nii.gz of at least 24 subjects, one scan each.  Every
trial trains a new network on pairs of three quarters of the subjects and registers the others in a
ring (each onto the next), aligned by their headers.  An arm changes some settings of the recipe
`small`; all arms of a seed use the same pairs in the same order.

Columns of a trial: mean Dice before and after; routing matters = (after - with choices shuffled) /
(after - before), for the encoder (whole rows of a gate go to other tokens) and the decoder (choices
go to other voxels, each keeping its own T), in all passes; attention matters = the same without the
output of attention; loads of the kernels at full resolution; SDlogJ and folding; CPU seconds.  A
row is appended to OUT/trials.jsonl at the end of a trial; the same command skips finished trials.
`--table` prints means over seeds, with a bootstrap over subjects."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from napari_shmoareg.geometry import VolumePair
from napari_shmoareg.geometry import field as fields_of
from napari_shmoareg.io import read_image
from napari_shmoareg.metrics import dice, folding, mean, sdlogj
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.model.gate_sites import GateSite, gates_of
from napari_shmoareg.model.moa import MoA, MultiHeadAttention
from napari_shmoareg.registration.cascade import cascade
from napari_shmoareg.registration.conform import Conformed, conform
from napari_shmoareg.training.expert_training import expert_config, start_experts
from napari_shmoareg.training.recipes import RECIPES, RunningMean
from napari_shmoareg.training.settings import FineTuning
from napari_shmoareg.training.step import fine_tune

ROWS = "trials.jsonl"
LEARNING_SHARE = 0.75


@dataclass(frozen=True)
class Arm:
    """Changes of a trial: fields of `FineTuning` and of `SHMoARegConfig`, and a description."""

    why: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


CORRESPONDENCE = {"known_motion": 0.5, "correspondence_weight": 0.1}
COUNTERFACTUAL = {"routing_target": "counterfactual", "routing_weight": 0.05}
DENSE = {"dense_share": 1 / 3, "gate_temperature": 2.0}
ARMS: dict[str, Arm] = {
    "baseline": Arm("the recipe small"),
    "frozen-gates": Arm("control: gates stay random", {"gates": "frozen"}),
    "plain-attention": Arm("control: MHA for MoA", config={"attention": "mha"}),
    "plain-heads": Arm("control: one 3x3x3 convolution for SHMoE", config={"shmoe_strides": ()}),
    "plain-layers": Arm("control: both plain", config={"attention": "mha", "shmoe_strides": ()}),
    "attention-off": Arm("control: attention adds nothing", {"attention": "off"}),
    "no-balance": Arm("as in the paper: no balance loss", {"balance_weight": 0.0}),
    "known-motion": Arm(
        "half of the steps on a scan and a deformed copy, without a loss on the motion",
        {"known_motion": 0.5},
    ),
    "correspondence": Arm("InfoNCE on tokens, weight 0.1", CORRESPONDENCE),
    "output-scale-4": Arm(
        "MoA's output projections start four times as large", {"moa_output_scale": 4.0}
    ),
    "bias-balance": Arm(
        "bias on the choice, z-loss, no switch loss", {"balance": "bias", "z_weight": 0.001}
    ),
    "mutual": Arm(
        "mutual information instead of switch loss", {"balance": "mutual", "balance_weight": 0.1}
    ),
    "dense-to-sparse": Arm("12 heads to 4 over the first third", DENSE, {"detach_weights": True}),
    "kernels-alike": Arm("1, 3, 5 start as the same function", {"kernels_start": "alike"}),
    "routing-0.05": Arm(
        "the paper's labels, with the weight of the counterfactual ones", {"routing_weight": 0.05}
    ),
    "counterfactual": Arm("counterfactual labels, weight 0.05", COUNTERFACTUAL),
    "head-diversity": Arm(
        "penalty on similar attention of heads, weight 0.1", {"head_diversity_weight": 0.1}
    ),
    "gate-jitter": Arm("noise on the kernels' choice over the first third", {"gate_jitter": 1.0}),
    "damping": Arm("a tenth of the gradient to kernels chosen wrongly", {"expert_damping": 0.1}),
    "teacher-drawn": Arm(
        "the true motion in half of the steps", {"known_motion": 0.5, "teacher": "drawn"}
    ),
    "teacher-descent": Arm("a refinement's displacement", {"teacher": "descent"}),
    "tokens-combined": Arm(
        "correspondence, scale 4, mutual information, counterfactual labels, equal kernels first",
        CORRESPONDENCE
        | COUNTERFACTUAL
        | {
            "moa_output_scale": 4.0,
            "balance": "mutual",
            "balance_weight": 0.1,
            "kernels_start": "alike",
        },
    ),
    "correspondence-balanced": Arm(
        "correspondence, bias on the choice with z-loss, kernels that begin alike",
        CORRESPONDENCE | {"balance": "bias", "z_weight": 0.001, "kernels_start": "alike"},
    ),
    "correspondence-taught": Arm(
        "the same, and the true motion in half of the steps",
        CORRESPONDENCE
        | {"balance": "bias", "z_weight": 0.001, "kernels_start": "alike", "teacher": "drawn"},
    ),
    "correspondence-diverse": Arm(
        "correspondence and penalty on similar attention of heads",
        CORRESPONDENCE | {"head_diversity_weight": 0.1},
    ),
    "alike-diverse": Arm(
        "kernels that begin alike and penalty on similar attention of heads",
        {"kernels_start": "alike", "head_diversity_weight": 0.1},
    ),
    "descent-combined": Arm(
        "a refinement's displacement, dense to sparse, counterfactual labels, equal kernels first",
        COUNTERFACTUAL
        | DENSE
        | {
            "teacher": "descent",
            "kernels_start": "alike",
            "moa_output_scale": 4.0,
        },
        {"detach_weights": True},
    ),
}


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", help="folder of the rows")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="images/*.nii.gz and labels/*.nii.gz"
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--size", type=int, default=32, help="voxels along the longest axis")
    parser.add_argument(
        "--judged", type=int, default=None, help="number of the ring's pairs to use"
    )
    parser.add_argument("--list", action="store_true", help="list the arms")
    parser.add_argument("--table", action="store_true", help="print the results in OUT")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run the missing trials, seed by seed, and print a line for each."""
    arguments = parse_arguments(words)
    if arguments.list:
        for name, arm in ARMS.items():
            changes = ", ".join(
                f"{key}={value}" for key, value in {**arm.settings, **arm.config}.items()
            )
            print(f"{name:18} {arm.why}" + (f" ({changes})" if changes else ""))
        return
    if arguments.out is None:
        sys.exit("Give OUT, the folder of the rows.")
    rows = read_rows(arguments.out / ROWS)
    if arguments.table:
        print(
            table(
                [
                    row
                    for row in rows
                    if (row["steps"], row["size"]) == (arguments.steps, arguments.size)
                ]
            )
        )
        return
    if arguments.data is None:
        sys.exit("Give --data: a folder with images/*.nii.gz and labels/*.nii.gz.")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    training_scans, validation_scans = read_subjects(arguments.data)
    ring = Ring(validation_scans, arguments.size, arguments.judged)
    done = {(row["arm"], row["seed"], row["steps"], row["size"]) for row in rows}
    for seed in arguments.seeds:
        for name in arguments.arms:
            if (name, seed, arguments.steps, arguments.size) in done:
                continue
            row = trial(name, seed, arguments.steps, arguments.size, training_scans, ring)
            append_row(arguments.out / ROWS, row)
            print(line(row), flush=True)


class TrainingPairs(Sequence[Conformed]):
    """Every pair of two subjects, conformed on access."""

    def __init__(self, scans: Sequence[tuple[Any, Any]], size: int) -> None:
        self.scans, self.size = scans, size
        count = len(scans)
        self.pairs = [(a, b) for a in range(count) for b in range(count) if a < b]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Conformed:  # type: ignore[override]
        moving, fixed = self.pairs[index]
        return conform_pair(self.scans[moving], self.scans[fixed], self.size)


class Ring(list[Conformed]):
    """Validation pairs: the scan of each subject onto that of the next."""

    def __init__(self, scans: Sequence[tuple[Any, Any]], size: int, most: int | None) -> None:
        count = len(scans)
        super().__init__(
            conform_pair(scans[n], scans[(n + 1) % count], size) for n in range(most or count)
        )


def read_subjects(folder: Path) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Images and labels of the training and the validation subjects, sorted by file name."""
    images = sorted((folder / "images").glob("*.nii.gz"))
    scans = [
        (read_image(path), read_image(folder / "labels" / path.name, labels=True))
        for path in images
        if (folder / "labels" / path.name).is_file()
    ]
    if len(scans) < 24:
        sys.exit(
            f"{folder} contains {len(scans)} images with labels of the same name; at least 24 were"
            " expected."
        )
    cut = round(LEARNING_SHARE * len(scans))
    return scans[:cut], scans[cut:]


def conform_pair(moving: tuple[Any, Any], fixed: tuple[Any, Any], size: int) -> Conformed:
    """Conform a pair, aligned by the headers."""
    return conform(VolumePair(moving[0], fixed[0], moving[1], fixed[1]), size=size, labels=True)


def trial(
    name: str,
    seed: int,
    steps: int,
    size: int,
    scans: Sequence[tuple[Any, Any]],
    ring: Sequence[Conformed],
) -> dict[str, Any]:
    """Train, validate, and return the row."""
    arm, recipe = ARMS[name], RECIPES["small"]
    common = {"steps": steps, "seed": seed, "cascade": 0.0, "bfloat16": False, "diffeomorphic": 0.0}
    rates = {"learning_rate": 1e-3, "final_rate": 5e-5}
    settings = FineTuning(**{**recipe.settings.to_dict(), **common, **rates, **arm.settings})
    config = SHMoARegConfig.preset(recipe.preset, size=size, passes=(1.0,), **arm.config)
    torch.manual_seed(seed)
    network = SHMoAReg(expert_config(config, settings))
    start_experts(network, settings)
    average = RunningMean(network, recipe.averaging if steps > 100 else 0.9)
    began, clock, shown = time.perf_counter(), time.process_time(), 0.0
    for step in fine_tune(network, TrainingPairs(scans, size), settings):
        average.follow(network)
        if time.perf_counter() - shown > 60:
            shown = time.perf_counter()
            print(
                f"{name}, seed {seed}: step {step.step}, loss {step.total:.3f}",
                file=sys.stderr,
                flush=True,
            )
    learned = time.process_time() - clock
    pairs = [validate(average.network.eval(), pair, number) for number, pair in enumerate(ring)]
    row: dict[str, Any] = {
        "arm": name,
        "seed": seed,
        "steps": steps,
        "size": size,
        "pairs": pairs,
        **figures(pairs),
    }
    row["seconds"] = round(learned, 1)
    row["seconds_judging"] = round(time.process_time() - clock - learned, 1)
    row["seconds_on_the_clock"] = round(time.perf_counter() - began, 1)
    row["settings"] = settings.to_dict()
    row["config"] = network.config.to_dict()
    return row


@torch.inference_mode()
def validate(network: SHMoAReg, pair: Conformed, seed: int) -> dict[str, float]:
    """Dice of one pair before, after, and with each control; kernel loads; SDlogJ and folding."""
    found = cascade(network, pair.moving, pair.fixed)
    result = {"before": overlap(pair, None), "after": overlap(pair, found.displacement)}
    for control in ("encoder", "decoder"):
        with shuffled(network, control, seed):
            result[control] = overlap(pair, cascade(network, pair.moving, pair.fixed).displacement)
    with without_attention(network):
        result["attention"] = overlap(pair, cascade(network, pair.moving, pair.fixed).displacement)
    determinant = fields_of.jacobian_determinant(found.displacement).numpy()
    result["sdlogj"], result["folding_percent"] = sdlogj(determinant), folding(determinant)
    chosen = [
        r.routing.experts.flatten() for r in found.last.routing.select(part="decoder", stride=1)
    ]
    if chosen:
        counts = torch.bincount(torch.cat(chosen), minlength=len(network.config.kernels))
        for kernel, count in zip(network.config.kernels, counts.tolist(), strict=True):
            result[f"load_{kernel}"] = 100 * count / int(counts.sum())
    return result


def overlap(pair: Conformed, displacement: Tensor | None) -> float:
    """Mean Dice of the labels, each warped as a linear one-hot map."""
    assert pair.moving_labels is not None and pair.fixed_labels is not None
    values = torch.unique(pair.fixed_labels)
    carried = (pair.moving_labels == values.view(1, -1, 1, 1, 1)).float()
    if displacement is not None:
        carried = fields_of.warp(carried, displacement, padding="border")
    moved = values[carried.argmax(1)]
    return mean(dice(moved[0].numpy().astype(int), pair.fixed_labels[0, 0].numpy().astype(int)))


@contextmanager
def shuffled(network: SHMoAReg, part: str, seed: int) -> Iterator[None]:
    """Shuffle gate decisions over the cells of each image in every pass; padding is unchanged."""
    rng = torch.Generator().manual_seed(seed)
    shape: list[int] = []

    def record_shape(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape[:] = inputs[0].shape[2:]

    handles: list[Any] = [network.register_forward_pre_hook(record_shape)]
    for site in gates_of(network):
        if site.part == part:
            handles.append(site.module.register_forward_hook(make_shuffle_hook(site, shape, rng)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def make_shuffle_hook(site: GateSite, shape: Sequence[int], rng: torch.Generator) -> Any:
    """Make a hook for values (2B, *S, N) of the encoder or (B, N, *S) of the decoder."""

    def shuffle(_: nn.Module, __: Any, values: Tensor) -> Tensor:
        rows = (values if site.part == "encoder" else values.movedim(1, -1)).clone()
        i, j, k = (-(-n // site.stride) for n in shape)
        for image in rows[:, :i, :j, :k]:
            flat = image.flatten(0, 2)
            order = torch.randperm(len(flat), generator=rng)
            flat = (
                flat[order]
                if site.part == "encoder"
                else with_choices(flat, flat.argmax(-1)[order])
            )
            image.copy_(flat.view_as(image))
        return rows if site.part == "encoder" else rows.movedim(-1, 1)

    return shuffle


def with_choices(values: Tensor, ids: Tensor) -> Tensor:
    """Give these experts the largest of the gate values (M, N)."""
    largest = values.amax(-1, keepdim=True)
    below = torch.minimum(values, largest * (1 - 1e-4))
    return below.scatter(-1, ids[:, None], largest)


@contextmanager
def without_attention(network: SHMoAReg) -> Iterator[None]:
    """Set the output of attention to 0 in every block and pass."""
    attentions = [
        module for module in network.modules() if isinstance(module, MoA | MultiHeadAttention)
    ]
    handles = [
        module.register_forward_hook(lambda _, __, out: (out[0] * 0, out[1]))
        for module in attentions
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def figures(pairs: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Means over pairs, and the scores of routing and attention."""
    names = [name for name in ("before", "after", "sdlogj", "folding_percent") if name in pairs[0]]
    names += [name for name in pairs[0] if name.startswith("load_")]
    row: dict[str, float | None] = {
        name: round(statistics.fmean(pair[name] for pair in pairs), 5) for name in names
    }
    for control, name in (
        ("encoder", "encoder_routing"),
        ("decoder", "decoder_routing"),
        ("attention", "attention"),
    ):
        row[f"{name}_matters"] = matters(pairs, control)
    return row


def matters(pairs: Sequence[Mapping[str, float]], control: str) -> float | None:
    """The share of the gain in Dice that is lost with a control; None without a gain."""
    gain = sum(pair["after"] - pair["before"] for pair in pairs)
    return (
        round(sum(pair["after"] - pair[control] for pair in pairs) / gain, 4) if gain > 0 else None
    )


def line(row: Mapping[str, Any]) -> str:
    """Format a trial in one line."""
    share = {
        name: row[f"{name}_matters"] for name in ("encoder_routing", "decoder_routing", "attention")
    }
    scores = ", ".join(
        f"{name.replace('_', ' ')} {'-' if v is None else f'{100 * v:+.1f} %'}"
        for name, v in share.items()
    )
    loads = "/".join(f"{row[f'load_{k}']:.0f}" for k in (1, 3, 5) if f"load_{k}" in row) or "-"
    return (
        f"{row['arm']}, seed {row['seed']}: Dice {row['before']:.3f} -> {row['after']:.3f};"
        f" matters: {scores}; 1/3/5 {loads} %; SDlogJ {row['sdlogj']:.2f}, folding"
        f" {row['folding_percent']:.3f} %; {row['seconds']:.0f} s"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table: a line per arm, means over seeds, 95 % bootstrap intervals over subjects."""
    heads = [
        "arm",
        "seeds",
        "Dice",
        "against baseline [95 %]",
        "encoder routing, %",
        "decoder routing, %",
        "attention, %",
    ]
    lines = [
        "| " + " | ".join([*heads, "1/3/5, %", "SDlogJ", "folding, %", "s"]) + " |",
        "|" + " --- |" * 11,
    ]
    base = {row["seed"]: row for row in rows if row["arm"] == "baseline"}
    for name in ARMS:
        own_rows = [row for row in rows if row["arm"] == name]
        if not own_rows:
            continue
        pairs = [pair for row in own_rows for pair in row["pairs"]]
        cells = [name, str(len(own_rows)), spread([row["after"] for row in own_rows])]
        matched_rows = [
            (row, base[row["seed"]])
            for row in own_rows
            if row["seed"] in base and name != "baseline"
        ]
        cells.append(against(matched_rows) if matched_rows else "")
        cells += [interval(own_rows, control) for control in ("encoder", "decoder", "attention")]
        kernels = [k for k in (1, 3, 5) if f"load_{k}" in pairs[0]]
        cells.append(
            "/".join(
                f"{statistics.fmean(pair[f'load_{k}'] for pair in pairs):.0f}" for k in kernels
            )
        )
        cells += [f"{statistics.fmean(row['sdlogj'] for row in own_rows):.2f}"]
        cells += [f"{statistics.fmean(row['folding_percent'] for row in own_rows):.3f}"]
        cells += [f"{statistics.fmean(row['seconds'] for row in own_rows):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean ± SD over seeds."""
    return f"{statistics.fmean(values):.3f}" + (
        f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    )


def against(matched_rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Difference in Dice from the baseline of the same seeds."""
    rows = [
        [a["after"] - b["after"] for a, b in zip(x["pairs"], y["pairs"], strict=True)]
        for x, y in matched_rows
    ]
    change = np.array(rows).mean(0)
    low, high = percentiles([change[pick].mean() for pick in bootstrap_indices(len(change))])
    return f"{change.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def interval(rows: Sequence[Mapping[str, Any]], control: str) -> str:
    """Share of the gain that is lost with a control, over all seeds."""
    gain = np.array(
        [[pair["after"] - pair["before"] for pair in row["pairs"]] for row in rows]
    ).mean(0)
    lost = np.array(
        [[pair["after"] - pair[control] for pair in row["pairs"]] for row in rows]
    ).mean(0)
    if gain.mean() <= 0:
        return "-"
    low, high = percentiles(
        [lost[pick].sum() / gain[pick].sum() for pick in bootstrap_indices(len(gain))]
    )
    return f"{100 * lost.mean() / gain.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def bootstrap_indices(count: int) -> Iterator[np.ndarray]:
    """Bootstrap over subjects: a pair counts with the product of its subjects' counts."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)
        counts = drawn * np.roll(drawn, -1)
        if counts.sum():
            yield np.repeat(np.arange(count), counts)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows; a last line cut off by a kill is skipped."""
    rows = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line in one write."""
    text = json.dumps(row) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        cut_off = path.stat().st_size and path.read_bytes()[-1:] != b"\n"
        os.write(handle, (("\n" if cut_off else "") + text).encode("utf-8"))
        os.fsync(handle)
    finally:
        os.close(handle)


if __name__ == "__main__":
    main()
