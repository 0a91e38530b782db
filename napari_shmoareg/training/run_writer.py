"""Writer of a run folder: tables, states, weights, validation.

The order of writing makes a kill harmless: table rows are written before the state of their steps,
the best weights before the state that refers to them, the last weights after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from napari_shmoareg.datasets.pairs import NamedPairs
from napari_shmoareg.errors import InputError
from napari_shmoareg.io import read_card, save_network
from napari_shmoareg.io.report import plain
from napari_shmoareg.model import SHMoAReg
from napari_shmoareg.registration.resources import choose_bfloat16
from napari_shmoareg.training.checkpoint import save_training_state
from napari_shmoareg.training.logs import Curves, Event, StepTable, event, phase
from napari_shmoareg.training.plan import Plan, describe_start, starts_from_scratch
from napari_shmoareg.training.preparation import KIND_MEASURES, TrainingData
from napari_shmoareg.training.recipes import RunningMean
from napari_shmoareg.training.run_folder import RunFolder
from napari_shmoareg.training.step import FURTHER_TERMS, TERMS, Step
from napari_shmoareg.training.validation import ValidationResult, validate

ABOUT_STEP = ("gradient", "rate", "pairs", "seconds")
METRICS = ("step", *TERMS, *FURTHER_TERMS, *ABOUT_STEP)
EARLIER_METRICS = ("step", *TERMS, *ABOUT_STEP)
MEASURES = ("dice", "ncc", "folding_percent")
VALIDATION = ("step", *MEASURES, "best", "seconds")
LOADS = ("step", "place", "expert", "count")
START_NOTE = (
    "These are the initial weights of the run: as long as this file exists, no later step had a"
    " better validation."
)
NO_IMPROVEMENT = "By validation, no step of the run was better than its initial weights."
SKIPPED = ("step", "pair", "why")


@dataclass(frozen=True)
class Position:
    """Position of a run, besides its network and optimiser.

    Attributes
    ----------
    step : int
        Steps done.
    seconds : float
        Their duration, summed over all sessions of the run.
    validated : int
        Step of the last validation; -1 before the first.
    validation : dict
        Its measures.
    best : dict
        Measures of the best validation; empty before the first.
    judges : list of str
        The validation pairs of the best.
    counts : dict of str to list of int
        Selections since the last rows of loads.csv, by gate.
    """

    step: int = 0
    seconds: float = 0.0
    validated: int = -1
    validation: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    judges: list[str] = field(default_factory=list)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def after(self, step: Step) -> Position:
        """The position after a step."""
        counts = dict(self.counts)
        for gate, count in step.counts.items():
            before = counts.get(gate, [0] * len(count))
            counts[gate] = [a + b for a, b in zip(before, count, strict=True)]
        return replace(self, step=step.step, seconds=self.seconds + step.seconds, counts=counts)

    def reset_counts(self) -> Position:
        """The position after writing to loads.csv."""
        return replace(self, counts={})

    def with_validation(self, found: ValidationResult) -> tuple[Position, bool]:
        """The position after a validation, and whether that is the best so far."""
        score = found.score
        best = score == score and (not self.best or score > self.best["score"])
        row = {
            "step": self.step,
            "dice": found.dice,
            "ncc": found.ncc,
            "folding_percent": found.folding_percent,
        }
        row = plain(row | {"score": score})
        return (
            replace(self, validated=self.step, validation=row, best=row if best else self.best),
            best,
        )


class RunWriter:
    """Writes a run folder; used in the main process only.

    Parameters
    ----------
    folder : RunFolder
    plan : Plan
    network : SHMoAReg
    optimiser : torch.optim.Optimizer
    position : Position
        Where the run starts; later table rows are removed.
    data : TrainingData
    mean : RunningMean or None
        If there is one, its weights are written instead of those of the network.

    Raises
    ------
    InputError
        If a table is damaged or cannot be written.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        network: SHMoAReg,
        optimiser: torch.optim.Optimizer,
        position: Position,
        data: TrainingData,
        mean: RunningMean | None = None,
    ) -> None:
        self._folder, self._plan, self._network, self._optimiser = folder, plan, network, optimiser
        self._mean = None if mean is None else mean.network
        self._result = self._mean or network
        self._scans, self._kind_measures = dict(data.scans), data.kind_measures
        self._last = folder.pretrained if plan.is_synthetic else folder.last
        self._saved_position: Position | None = (
            position if folder.state.is_file() and self._last_is_of(position.step) else None
        )
        self.saved = position.step if folder.state.is_file() else -1
        step = position.step
        self._tables = {
            "metrics": StepTable(folder.metrics, METRICS, last=step, earlier=EARLIER_METRICS),
            "validation": StepTable(
                folder.validation,
                (*VALIDATION[:-2], *self._kind_measures, *VALIDATION[-2:]),
                last=position.validated,
            ),
            "loads": StepTable(folder.loads, LOADS, last=step),
            "skipped": StepTable(folder.skipped, SKIPPED, last=step),
        }
        self._curves = Curves(folder.curves if plan.run.tensorboard else None, after=step)

    def step(self, step: Step, pairs: str) -> None:
        """Write the row of a step."""
        losses = {name: getattr(step, name) for name in TERMS} | step.further
        row = {"step": step.step, **losses, "gradient": step.gradient, "rate": step.rate}
        with self._with_saved_state():
            self._tables["metrics"].add([row | {"pairs": pairs, "seconds": round(step.seconds, 3)}])
            self._curves.add("loss", losses, step.step)
            self._curves.add(
                "step",
                {"gradient": step.gradient, "rate": step.rate, "seconds": step.seconds},
                step.step,
            )

    def loads(
        self, step: int, counts: Mapping[str, list[int]], shares: Mapping[str, list[float]]
    ) -> None:
        """Write the selections of the last ten steps, and the shares of the last window as
        curves.
        """
        rows = [
            {"step": step, "place": gate, "expert": expert, "count": count}
            for gate, row in counts.items()
            for expert, count in enumerate(row)
        ]
        with self._with_saved_state():
            self._tables["loads"].add(rows)
            for gate, share in shares.items():
                self._curves.add(
                    f"load {gate}", {f"expert {n}": value for n, value in enumerate(share)}, step
                )

    def skipped(self, step: int, pair: str, why: str) -> None:
        """Record a pair that could not be read."""
        with self._with_saved_state():
            self._tables["skipped"].add([{"step": step, "pair": pair, "why": why}])

    def validated(self, position: Position, found: ValidationResult, best: bool) -> None:
        """Write the row of a validation, and the weights if they are the best so far.

        Raises
        ------
        InputError
            If the disk is full.
        """
        figures = {name: getattr(found, name) for name in MEASURES} | dict(found.by_kind)
        row = {
            **dict.fromkeys(self._kind_measures),
            "step": position.step,
            **figures,
            "best": int(best),
            "seconds": round(found.seconds, 3),
        }
        with self._with_saved_state():
            if best:
                note = {} if position.step else {"fine_tuning_note": START_NOTE}
                save_network(self._result, self._folder.best, card=self._card(position) | note)
            self._tables["validation"].add([row])
            self._curves.add("validation", figures, position.step)

    def save(self, position: Position) -> None:
        """Write the state, then the last weights.

        Raises
        ------
        InputError
            If the disk is full; the previous state is intact then.
        """
        with self._with_saved_state():
            for table in self._tables.values():
                table.flush()
            self._curves.flush()
            save_training_state(
                self._folder.path,
                self._network,
                self._optimiser,
                position.step,
                [asdict(position)],
                mean=self._mean,
            )
            self.saved = position.step
            save_network(self._result, self._last, card=self._card(position))
            self._saved_position = position

    @property
    def saved_message(self) -> str:
        """Describe what is saved, for error messages."""
        if self.saved < 0:
            return "No state of the run was saved yet; only its tables are kept."
        return (
            f"The state of step {self.saved} in {self._folder.path} is intact: fix the problem"
            " and continue from there with --resume."
        )

    def is_due(self, position: Position) -> bool:
        """Whether this position is not saved yet."""
        return self._saved_position != position

    def _last_is_of(self, step: int) -> bool:
        """Whether the last weights are from this step; a kill between state and weights leaves
        older weights.
        """
        key = "steps" if self._plan.is_synthetic else "fine_tuning_steps"
        return self._last.is_file() and read_card(self._last).get(key) == step

    @contextmanager
    def _with_saved_state(self) -> Iterator[None]:
        """Add what is saved to error messages."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{error} {self.saved_message}") from error

    def close(self) -> None:
        """Close the files."""
        for table in self._tables.values():
            table.close()
        self._curves.close()

    def _card(self, position: Position) -> dict[str, Any]:
        """Make the model card of the weights."""
        start, device = self._plan.weights, next(self._network.parameters()).device
        bfloat16 = choose_bfloat16(self._plan.settings.bfloat16, device)[0]
        if self._plan.is_synthetic:
            return self._synthetic_card(position) | {"in_bfloat16": bfloat16}
        return plain(
            {
                **start["card"],
                "fine_tuned_from": describe_start(start),
                "fine_tuned_from_sha256": start["sha256"] or None,
                "fine_tuning": self._plan.settings.to_dict() | self._plan.run.to_dict(),
                "fine_tuning_in_bfloat16": bfloat16,
                "fine_tuning_dataset": {"path": self._plan.dataset.path, "scans": self._scans},
                "fine_tuning_steps": position.step,
                "fine_tuning_minutes": round(position.seconds / 60, 2),
                "fine_tuning_validation": position.validation or None,
                "fine_tuning_best_step": position.best.get("step"),
                "fine_tuning_note": (
                    NO_IMPROVEMENT if position.best.get("step") == 0 < position.step else None
                ),
            }
        )

    def _synthetic_card(self, position: Position) -> dict[str, Any]:
        """Make the model card of weights of a run on synthetic pairs."""
        scratch, name = starts_from_scratch(self._plan.weights), self._plan.weights["name"]
        after = "; no scan of a person was used" if scratch else f", after '{name}'"
        return plain(
            {
                "name": self._folder.path.name,
                "drawn_from": f"{self._plan.synthetic.content}{after}",
                "from": None if scratch else name,
                "recipe": asdict(self._plan.synthetic.recipe),
                "steps": position.step,
                "minutes": round(position.seconds / 60, 1),
            }
        )


def validate_pairs(
    network: SHMoAReg, data: TrainingData, step: int, found: list[ValidationResult]
) -> Iterator[Event]:
    """Validate on pairs one by one; a pair that cannot be read is reported and left out.

    Parameters
    ----------
    network : SHMoAReg
    data : TrainingData
        With the validation pairs.
    step : int
        Steps of training so far.
    found : list of ValidationResult
        Filled with one result per readable pair.

    Yields
    ------
    dict
        Events "phase" and "skipped".
    """
    pairs = data.validation
    for number in range(len(pairs)):
        yield phase("validating", number / len(pairs), pairs.pair_name(number))
        try:
            result = validate(network, pairs[number : number + 1])
            if data.kinds:
                result = replace(result, by_kind=measures_of_kind(result, data.kinds[number]))
            found.append(result)
        except (InputError, OSError) as error:
            yield event("skipped", pair=pairs.pair_name(number), why=str(error), step=step)
    yield phase("validating", 1.0, f"{len(found)} pairs")


def carry_over_best(
    position: Position, pairs: NamedPairs, folder: RunFolder
) -> tuple[Position, tuple[str, ...]]:
    """Drop the best validation on resume if its weights are missing or it is not comparable; return
    warnings.

    Parameters
    ----------
    position : Position
        The saved position.
    pairs : NamedPairs
        The validation pairs from now on.
    folder : RunFolder
    """
    if not position.best:
        return position, ()
    if not folder.best.is_file():
        return replace(position, best={}), (
            (
                f"{folder.best} is missing: the best weights so far are lost, and the next"
                " validation saves new ones."
            ),
        )
    if position.judges and set(position.judges) != set(pairs.pair_names):
        return replace(position, best={}), (
            (
                "The validation pairs have changed, so scores are not comparable with earlier"
                " ones: the next validation counts as the best so far and replaces"
                f" {folder.best}."
            ),
        )
    return position, ()


def measures_of_kind(result: ValidationResult, kind: str) -> dict[str, float]:
    """The `KIND_MEASURES` of a result whose pairs are all of one kind."""
    rows = [(pair.before, pair.dice, pair.folding_percent) for pair in result.per_pair]
    means = np.mean(np.array(rows, dtype=float), axis=0).tolist()
    return {f"{kind}_{name}": mean for name, mean in zip(KIND_MEASURES, means, strict=True)}


def combine_validations(found: Sequence[ValidationResult]) -> ValidationResult:
    """Combine the results of single pairs."""
    pairs = [pair for result in found for pair in result.per_pair]
    measured = [result.by_kind for result in found]
    with_labels = [pair.dice for pair in pairs if not np.isnan(pair.dice)]
    return ValidationResult(
        dice=float(np.mean(with_labels)) if with_labels else float("nan"),
        ncc=float(np.mean([pair.ncc for pair in pairs])),
        folding_percent=float(np.mean([pair.folding_percent for pair in pairs])),
        seconds=sum(result.seconds for result in found),
        per_pair=tuple(pairs),
        by_kind={
            name: float(np.mean([row[name] for row in measured if name in row]))
            for name in dict.fromkeys(name for row in measured for name in row)
        },
    )
