"""From a data set to the pairs that a run learns from and is judged on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from napari_shmoareg.datasets.pairs import NamedPairs, Names, spread, without_order
from napari_shmoareg.datasets.splits import PARTS, Division, read_division, write_division
from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import write_table
from napari_shmoareg.training.distributed import TrainingGroup
from napari_shmoareg.training.logs import Event, event, phase
from napari_shmoareg.training.plan import (
    Plan,
    check_scans_unchanged,
    check_split_exists,
    files_of,
    reference_of,
)
from napari_shmoareg.training.run import RunFolder

if TYPE_CHECKING:
    from napari_shmoareg.datasets import Checkup, Dataset


T = TypeVar("T")


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    Attributes
    ----------
    train, validation : NamedPairs
    scans : dict of str to int
        Scans of each part.
    pairs : dict of str to int
        Pairs of each part; those of training without regard to their order, as a step sees both.
    grids : ((D, H, W), (D, H, W))
        Network grids of one pair: in learning, and in a registration.
    problems : tuple of str
        What the check-up warns of.
    """

    train: NamedPairs
    validation: NamedPairs
    scans: dict[str, int]
    pairs: dict[str, int]
    grids: tuple[tuple[int, ...], tuple[int, ...]]
    problems: tuple[str, ...] = ()


def prepare_data(
    plan: Plan,
    dataset: Dataset,
    folder: RunFolder,
    group: TrainingGroup,
    stop: Callable[[], bool],
) -> Generator[Event, None, TrainingData | None]:
    """Split, check and pair.

    Parameters
    ----------
    plan : Plan
    dataset : Dataset
    folder : RunFolder
        The leader writes checkup.csv there, and split.json where there is none yet.
    group : TrainingGroup
    stop : callable
        Asked after each scan whether to end.

    Yields
    ------
    dict
        Events "scan" and "phase".

    Returns
    -------
    Material or None
        None if it was to end.

    Raises
    ------
    InputError
        If no pair is left to learn from, or the run went on with other scans.
    """
    from napari_shmoareg.datasets import Checkup, VolumeCache, split_dataset

    check_split_exists(folder)
    before = read_division(folder.split) if folder.split.is_file() else None
    split = (
        before.split
        if before is not None
        else split_dataset(dataset, plan.run.split, plan.run.split_seed)
    )
    settings = plan.settings
    yield phase("checkup", 0.0, f"{len(dataset.scans)} scans")
    checkup = Checkup(
        dataset,
        size=settings.size,
        affine=plan.run.affine,
        labels=settings.overlap_weight > 0,
        cache=VolumeCache(),
        training=split.train,
    )
    done = 0
    for report in run_on_main(group, checkup.run, until=stop):
        done += 1
        yield event("scan", **report.to_dict())
        yield phase("checkup", done / len(dataset.scans), report.name)
    if group.any(stop()):
        return None
    if not group.is_main:
        for _ in checkup.run():  # what the leader found lies in the cache
            continue
    if group.is_main:
        write_table(checkup.rows(), folder.checkup)
    changed: list[str] = []
    if before is None:
        left_out = {report.name: report.skipped for report in checkup.reports if report.skipped}
        division = Division(
            split, left_out, (), files_of(checkup), reference_of(checkup, plan.run.affine)
        )
    else:
        changed, division = check_scans_unchanged(before, checkup, plan, folder), before
    yield phase("preparing", 0.0, "making pairs")
    data, division = _training_data(plan, dataset, checkup, division, is_new=before is None)
    data = replace(data, problems=(*changed, *data.problems, *validation_warnings(plan, data)))
    if group.is_main and before is None:
        write_division(folder.split, division)
    return data


def _training_data(
    plan: Plan, dataset: Dataset, checkup: Checkup, division: Division, is_new: bool
) -> tuple[TrainingData, Division]:
    """The pairs of the scans that stand in a part and can be used; and what a new run leaves
    out.
    """
    config, settings = plan.network_config, plan.settings
    parts = {part: division.used(part) for part in PARTS}
    names = {part: dataset.ordered_pairs(sorted(used)) for part, used in parts.items()}
    names["train"] = without_order(names["train"])
    usable = {part: sorted(set(used) & set(checkup.usable)) for part, used in parts.items()}
    excluded = set(division.left_out_pairs)

    def make_pairs(part: str, size: int, labels: bool) -> NamedPairs:
        present = [name for name in parts[part] if name in dataset.names]
        found = checkup.pairs(present, size=size, labels=labels, both_orders=part != "train")
        places: dict[Names, int] = {pair: n for n, pair in enumerate(found.names)}
        if is_new:
            excluded.update(pair for pair in names[part] if pair not in places)
        return NamedPairs(found, places, [pair for pair in names[part] if pair not in excluded])

    train = make_pairs("train", settings.size, settings.overlap_weight > 0)
    validation = make_pairs("validation", config.size, True)
    if not len(train):
        raise InputError(
            f"No pair is left to learn from: {len(parts['train'])} of {len(division.split.train)}"
            " scans for training can be used.",
            remedy="See checkup.csv for why, or give a {split} with more for training.",
        )
    data = TrainingData(
        train=train,
        validation=validation.some(spread(validation.names, plan.run.validation_pairs)),
        scans={part: len(used) for part, used in usable.items()},
        pairs={
            "train": train.present,
            "validation": validation.present,
            "test": len(dataset.ordered_pairs(usable["test"])),
        },
        grids=_grids(train, make_pairs("train", config.size, False), settings.size, config.size),
        problems=tuple(checkup.problems),
    )
    return data, Division(
        division.split,
        division.left_out,
        tuple(sorted(excluded)),
        division.files,
        division.reference,
    )


def validation_warnings(plan: Plan, data: TrainingData) -> Iterator[str]:
    """A warning, where a run that is to be validated has nothing to be validated by."""
    if plan.run.validate_every and not len(data.validation):
        yield (
            "Nothing will be validated and no best weights are kept: the"
            f" {data.scans['validation']} scans that judge give no pair. Give a split with"
            " more for validation, in another run."
        )


def _grids(
    train: NamedPairs, used: NamedPairs, size: int, full: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two grids of the first pair that can be read; cubes where none of a few can."""
    for index in range(min(3, len(train))):
        try:
            return tuple(train[index].grid.shape), tuple(used[index].grid.shape)
        except (InputError, OSError):  # told when its step comes
            continue
    return (size,) * 3, (full,) * 3


def run_on_main(
    group: TrainingGroup, work: Callable[[], Iterator[T]], until: Callable[[], bool] = lambda: False
) -> Iterator[T]:
    """What the leader does alone, item by item, while the others wait; it may end early."""
    if not group.is_main:
        while not group.any(False):
            continue
        return
    for item in work():
        group.any(False)
        yield item
        if until():
            break
    group.any(True)
