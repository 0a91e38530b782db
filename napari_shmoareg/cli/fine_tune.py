"""``shmoareg fine-tune``: go on learning, on pairs of one's own."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_shmoareg.cli.errors import CANCELLED, say
from napari_shmoareg.cli.options import Affine, AffineOption, Channel, Debug, Device, DeviceOption, Nan, Quiet
from napari_shmoareg.cli.progress import progress
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.weights import chosen_device, chosen_weights

if TYPE_CHECKING:
    from napari_shmoareg.engine.aligned_pairs import AlignedPairs
    from napari_shmoareg.engine.fine_tuning import FineTuning, Step
    from napari_shmoareg.model import SHMoAReg


class Similarity(StrEnum):
    """What makes two images alike."""

    mse = "mse"
    lncc = "lncc"


def fine_tune(
    pairs: Annotated[
        Path,
        typer.Option(
            "--pairs",
            metavar="LIST.csv",
            help="One pair of files a line, in the columns moving, fixed and, where there are labels, "
            "moving_labels, fixed_labels.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the new weights go (.safetensors).")],
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME|PATH", help="Weights to begin with.", show_default="the shipped ones"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="How many steps; each sees both orders of one pair.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Of Adam.")] = None,
    similarity: Annotated[
        Similarity | None, typer.Option("--similarity", help="lncc for scans of differing contrast.")
    ] = None,
    smoothness: Annotated[
        float | None, typer.Option("--smoothness", help="Weight of smoothness: more bends less.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Weight of the overlap of labels, where both images have some.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", min=8, help="Voxels along the longest axis.", show_default="as the weights say"),
    ] = None,
    affine: AffineOption = Affine.auto,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides the order of the pairs.")] = None,
    device: DeviceOption = Device.auto,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="Write the losses of every step as CSV.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    nan: Nan = None,
    channel: Channel = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train weights further on pairs of your own, with the losses of the paper.

    What is not given is as in the paper.  Ctrl-C stops after the current step and keeps what was learned.
    """
    _check_places(pairs, out, log, overwrite)
    from napari_shmoareg.engine.aligned_pairs import AlignedPairs
    from napari_shmoareg.engine.fine_tuning import FineTuning
    from napari_shmoareg.io.checkpoint import load_network, read_card
    from napari_shmoareg.io.datasets import read_pair_list

    listed = read_pair_list(pairs, nan=nan, channel=channel)
    place = chosen_device(device.value)
    name, _ = chosen_weights(start, place)
    network = load_network(name, device=place)
    given = {
        "steps": steps,
        "learning_rate": learning_rate,
        "similarity": None if similarity is None else similarity.value,
        "smoothness_weight": smoothness,
        "overlap_weight": overlap,
        "size": size or network.config.learning_size,
        "seed": seed,
        "diffeomorphic": 1.0 if network.config.diffeomorphic else None,
    }
    settings = FineTuning(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    began = time.perf_counter()
    seen = AlignedPairs(listed, size=settings.size, affine=affine.value, labels=settings.overlap_weight > 0)
    done = _learn(network, seen, settings, quiet)
    card = read_card(name) | {
        "fine_tuned_from": str(name),
        "fine_tuning": settings.to_dict() | {"affine": affine.value},
        "fine_tuning_pairs": len(listed),
        "fine_tuning_steps": len(done),
        "fine_tuning_minutes": round((time.perf_counter() - began) / 60, 2),
    }
    _write(network, out, card, done, log)
    if len(done) < settings.steps:
        say(f"Stopped after {len(done)} of {settings.steps} steps; the weights so far are in {out}.")
        raise typer.Exit(CANCELLED)
    if not quiet:
        typer.echo(_summary(done, out))


def _learn(network: SHMoAReg, pairs: AlignedPairs, settings: FineTuning, quiet: bool) -> list[Step]:
    """Run the steps, until the last one or Ctrl-C."""
    from napari_shmoareg.engine.fine_tuning import fine_tune as steps_of

    done: list[Step] = []
    with asked_to_stop() as asked, progress(quiet) as report:
        report("fine-tuning", 0.0)
        for step in steps_of(network, pairs, settings):
            done.append(step)
            report(f"fine-tuning, loss {_recent(done):.5f}", step.step / settings.steps)
            if asked:
                break
    return done


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that fills at the first Ctrl-C; the second one cancels."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("Stopping after this step; Ctrl-C again drops what was learned.")

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _write(network: SHMoAReg, out: Path, card: Mapping[str, Any], done: Sequence[Step], log: Path | None) -> None:
    from napari_shmoareg.io.checkpoint import save_network
    from napari_shmoareg.io.tables import write_table

    save_network(network, out, card=card)
    if log is not None:
        write_table([asdict(step) for step in done], log)


def _check_places(pairs: Path, out: Path, log: Path | None, overwrite: bool) -> None:
    """Refuse before hours of work what would fail after them."""
    from napari_shmoareg.io.places import check_new_file

    if out.suffix != ".safetensors":
        raise InputError(f"Weights are written as safetensors: the name '{out}' has to end in .safetensors.")
    for place in filter(None, (out, log)):
        check_new_file(place, overwrite=overwrite, inputs=(pairs,))


def _recent(done: Sequence[Step]) -> float:
    """The mean loss of the last steps, which one pair does not decide."""
    last = [step.total for step in done[-20:]]
    return math.fsum(last) / len(last)


def _summary(done: Sequence[Step], out: Path) -> str:
    first, last = _recent(done[:20]), _recent(done)
    return f"{len(done)} steps; mean loss {first:.5f} over the first, {last:.5f} over the last ones. Wrote {out}"
