"""Preparation of a data set: split, check-up, training and validation pairs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from napari_shmoareg.datasets.dataset import PARTS
from napari_shmoareg.datasets.pairs import NamedPairs, spread_evenly, unordered_pairs
from napari_shmoareg.datasets.splits import Division, read_division, write_division
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
from napari_shmoareg.training.recipes import (
    split_subjects,
    torso_validation_pairs,
    validation_pairs,
)
from napari_shmoareg.training.run_folder import RunFolder
from napari_shmoareg.training.synthesis import Subject, SyntheticPairs

if TYPE_CHECKING:
    from napari_shmoareg.datasets import Checkup, Dataset


T = TypeVar("T")
KIND_MEASURES = ("before", "after", "folding")


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes
    ----------
    train : NamedPairs or SyntheticPairs
    validation : NamedPairs
    scans : dict of str to int
        Number of scans in each part of the split.
    pairs : dict of str to int
        Number of pairs in each part; training pairs are unordered, because a step uses both orders.
    grids : ((D, H, W), (D, H, W))
        Network grids of one pair, in training and in registration.
    problems : tuple of str
        Warnings of the check-up.
    kinds : tuple of str
        Of synthetic pairs: the kind of each validation pair, "maps" or "torso".
    """

    train: NamedPairs | SyntheticPairs
    validation: NamedPairs
    scans: dict[str, int]
    pairs: dict[str, int]
    grids: tuple[tuple[int, ...], tuple[int, ...]]
    problems: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def kind_measures(self) -> list[str]:
        """Names of the measures of each kind."""
        return [f"{kind}_{name}" for kind in dict.fromkeys(self.kinds) for name in KIND_MEASURES]


def prepare_data(
    plan: Plan,
    dataset: Dataset,
    folder: RunFolder,
    group: TrainingGroup,
    stop: Callable[[], bool],
) -> Generator[Event, None, TrainingData | None]:
    """Split and check the data set and make pairs.

    Parameters
    ----------
    plan : Plan
    dataset : Dataset
    folder : RunFolder
        The main process writes checkup.csv there, and split.json if it is missing; all keep
        prepared scans there.
    group : TrainingGroup
    stop : callable
        Called after each scan; whether to stop.

    Yields
    ------
    dict
        Events "scan" and "phase".

    Returns
    -------
    Material or None
        None if stopped.

    Raises
    ------
    InputError
        If no training pair is left, or a resumed run has other scans.
    """
    from napari_shmoareg.datasets import Checkup, split_dataset

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
        prepared=folder.prepared,
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
        for _ in checkup.run():  # the results of the main process are in the folder
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


def synthetic_data(
    plan: Plan, subjects: Sequence[Subject], device: torch.device
) -> Generator[Event, None, TrainingData]:
    """Make the pairs of a run on synthetic pairs, yielding events "phase"; those for training are
    generated on the device.
    """
    yield phase("preparing", 0.0, "making pairs")
    recipe, size = plan.synthetic.recipe, plan.network_config.size
    drawing, count = recipe.drawing, plan.run.validation_pairs
    made = {"maps": validation_pairs(subjects, drawing, size=size, count=count) if subjects else []}
    made["torso"] = torso_validation_pairs(drawing, size=size, count=count) if drawing.torso else []
    kinds = [(kind, number) for kind, pairs in made.items() for number in range(len(pairs))]
    names = [(f"{kind}-{number}-moving", f"{kind}-{number}-fixed") for kind, number in kinds]
    drawn = dict(zip(names, [*made["maps"], *made["torso"]], strict=True))
    train = recipe.pairs(subjects, device)
    learners, held_out = split_subjects(subjects)
    return TrainingData(
        train=train,
        validation=NamedPairs(names, lambda moving, fixed: drawn[moving, fixed]),
        scans={"train": len(learners), "validation": len(held_out), "test": 0},
        pairs={"train": len(train), "validation": len(drawn), "test": 0},
        grids=(tuple(train[0].grid.shape), (size,) * 3),
        kinds=tuple(kind for kind, _ in kinds),
    )


def _training_data(
    plan: Plan, dataset: Dataset, checkup: Checkup, division: Division, is_new: bool
) -> tuple[TrainingData, Division]:
    """Make the pairs of usable scans; for a new run, also record the excluded pairs."""
    config, settings = plan.network_config, plan.settings
    parts = {part: division.used(part) for part in PARTS}
    names = {part: dataset.ordered_pairs(sorted(used)) for part, used in parts.items()}
    names["train"] = unordered_pairs(names["train"])
    usable = {part: sorted(set(used) & set(checkup.usable)) for part, used in parts.items()}
    excluded = set(division.left_out_pairs)

    def make_pairs(part: str, size: int, labels: bool) -> NamedPairs:
        present = [name for name in parts[part] if name in dataset.names]
        found = checkup.pairs(present, size=size, labels=labels, both_orders=part != "train")
        if is_new:
            excluded.update(set(names[part]) - set(found.names))
        return found.renamed([pair for pair in names[part] if pair not in excluded])

    train = make_pairs("train", settings.size, settings.overlap_weight > 0)
    validation = make_pairs("validation", config.size, True)
    if not len(train):
        raise InputError(
            f"No training pair is left: {len(parts['train'])} of {len(division.split.train)}"
            " training scans can be used.",
            remedy="See checkup.csv for the reasons, or give a {split} with more training scans.",
        )
    data = TrainingData(
        train=train,
        validation=validation.select(spread_evenly(validation.names, plan.run.validation_pairs)),
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
    """Warn if validation is enabled but there are no validation pairs."""
    if plan.run.validate_every and not len(data.validation):
        yield (
            "There is no validation, and no best weights are saved: the"
            f" {data.scans['validation']} validation scans give no pair. Start another run with"
            " a split that has more."
        )


def _grids(
    train: NamedPairs, used: NamedPairs, size: int, full: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two grids of the first readable pair; cubes if none of the first three can be read."""
    for index in range(min(3, len(train))):
        try:
            return tuple(train[index].grid.shape), tuple(used[index].grid.shape)
        except (InputError, OSError):  # reported when its step comes
            continue
    return (size,) * 3, (full,) * 3


def run_on_main(
    group: TrainingGroup, work: Callable[[], Iterator[T]], until: Callable[[], bool] = lambda: False
) -> Iterator[T]:
    """Run work in the main process only, item by item, while the others wait; it may stop early."""
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
