"""A look at the validation pairs, one pair at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from napari_shmoareg.analysis.validation import Validated, validate
from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.training_run.events import Event, event, phase
from napari_shmoareg.io.training_run.folder import RunFolder
from napari_shmoareg.io.training_run.keeping import Position
from napari_shmoareg.io.training_run.named_pairs import NamedPairs
from napari_shmoareg.model import SHMoAReg


def judge(network: SHMoAReg, pairs: NamedPairs, step: int, found: list[Validated]) -> Iterator[Event]:
    """Register the pairs one after the other; a pair that cannot be read is told and left out.

    Parameters
    ----------
    network : SHMoAReg
    pairs : NamedPairs
    step : int
        Steps that it has learned.
    found : list of Validated
        Filled, one for each pair that could be read.

    Yields
    ------
    dict
        Events "phase" and "skipped".
    """
    for number in range(len(pairs)):
        yield phase("validating", number / len(pairs), pairs.told(number))
        try:
            found.append(validate(network, pairs[number : number + 1]))
        except (InputError, OSError) as error:
            yield event("skipped", pair=pairs.told(number), why=str(error), step=step)
    yield phase("validating", 1.0, f"{len(found)} pairs")


def still_best(position: Position, pairs: NamedPairs, folder: RunFolder) -> tuple[Position, tuple[str, ...]]:
    """The position with which a run goes on, without a best that is gone or cannot be compared; and what was lost.

    Parameters
    ----------
    position : Position
        As it was saved.
    pairs : NamedPairs
        That judge from now on.
    folder : RunFolder
    """
    if not position.best:
        return position, ()
    if not folder.best.is_file():
        return replace(position, best={}), (
            f"{folder.best} is missing: the best so far was lost, and the next look at the validation pairs makes "
            "another.",
        )
    if position.judges and set(position.judges) != set(pairs.all_told):
        return replace(position, best={}), (
            "Other validation pairs judge from now on, whose scores do not compare with those before: the next look "
            f"is the best so far, and replaces {folder.best}.",
        )
    return position, ()


def together(found: Sequence[Validated]) -> Validated:
    """Looks at single pairs as one."""
    each = [pair for one in found for pair in one.per_pair]
    with_labels = [pair.dice for pair in each if not np.isnan(pair.dice)]
    return Validated(
        dice=float(np.mean(with_labels)) if with_labels else float("nan"),
        ncc=float(np.mean([pair.ncc for pair in each])),
        folding_percent=float(np.mean([pair.folding_percent for pair in each])),
        seconds=sum(one.seconds for one in found),
        per_pair=tuple(each),
    )
