"""What the pairs of one step came to, added up over pairs and processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from napari_shmoareg.engine.losses import LossTerms
from napari_shmoareg.geometry import InputError
from napari_shmoareg.model import RoutingTrace

TERMS = ("total", "similarity", "smoothness", "routing", "overlap")
Skipped = tuple[int, str]


@dataclass(frozen=True)
class Step:
    """What one step of `fine_tune` did.

    Attributes
    ----------
    step : int
        Steps done so far, this one included.
    pairs : tuple of int
        Indices of the pairs of its batch.
    total, similarity, smoothness, routing, overlap : float
        Eq. (8) and its terms before their weights, means over the batch; overlap is NaN without labels.
    gradient : float
        Norm of the gradient, before it is clipped.
    rate : float
        Learning rate.
    seconds : float
    counts : dict of str to tuple of int
        How often each expert was chosen, by layer: "encoder-1-moving" (its blocks together), "decoder-1-x".
    skipped : tuple of (int, str)
        Pairs that this process could not read, others taking their place, and why.
    """

    step: int
    pairs: tuple[int, ...]
    total: float
    similarity: float
    smoothness: float
    routing: float
    overlap: float
    gradient: float
    rate: float
    seconds: float
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


class Batch:
    """The pairs of one step: each notes what it came to, the team adds up.

    Parameters
    ----------
    size : int
        Pairs in the whole batch, those of other processes included.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows = torch.zeros(size, len(TERMS) + 2, dtype=torch.float64)  # terms, whether it has labels, index
        self._counts: dict[str, Tensor] = {}
        self._skipped: list[Skipped] = []

    def note(
        self, item: int, index: int, terms: LossTerms, routing: RoutingTrace, skipped: tuple[Skipped, ...] = ()
    ) -> None:
        """Take down one pair: its place in the batch, its index, its loss and its routing."""
        values = torch.stack([getattr(terms, name).detach() for name in TERMS]).to("cpu", torch.float64)
        has_overlap = not bool(terms.overlap.isnan())
        values[-1] = values[-1] if has_overlap else 0.0
        self._rows[item] = torch.cat([values, torch.tensor([float(has_overlap), float(index)])])
        for name, count in counts_of(routing).items():
            self._counts[name] = self._counts[name] + count if name in self._counts else count
        self._skipped.extend(skipped)

    def tensors(self, device: torch.device) -> list[Tensor]:
        """What has to be added over the processes, on the device; in place, so read after that."""
        self._rows = self._rows.to(device)
        self._counts = {name: count.to(device) for name, count in self._counts.items()}
        return [self._rows, *self._counts.values()]

    def check(self, step: int) -> None:
        """Refuse a loss that is not finite, saying which pair's it is.

        Parameters
        ----------
        step : int
            From 0.

        Raises
        ------
        NotFiniteError
        """
        totals = self._rows[:, 0].tolist()
        for index, total in zip(self.indices, totals, strict=True):
            if not abs(total) < float("inf"):
                raise NotFiniteError("loss", total, step, (index,))

    @property
    def indices(self) -> tuple[int, ...]:
        """The index of each pair."""
        return tuple(int(n) for n in self._rows[:, -1].tolist())

    def step(self, number: int, **more: Any) -> Step:
        """Means over the batch."""
        sums = dict(zip(TERMS, self._rows[:, : len(TERMS)].sum(0).tolist(), strict=True))
        with_overlap = float(self._rows[:, len(TERMS)].sum())
        means = {name: value / self._size for name, value in sums.items()}
        means["overlap"] = sums["overlap"] / with_overlap if with_overlap else float("nan")
        counts = {name: tuple(int(n) for n in count.tolist()) for name, count in self._counts.items()}
        return Step(number, self.indices, **means, **more, counts=counts, skipped=tuple(self._skipped))


class NotFiniteError(InputError):
    """A loss or gradient that is NaN or infinite; the weights are those before the step.

    Attributes
    ----------
    step : int
        That failed, from 1.
    pairs : tuple of int
        Indices of the pairs that it may come from.
    """

    def __init__(self, what: str, value: float, step: int, pairs: tuple[int, ...]) -> None:
        self.step, self.pairs = step + 1, pairs
        which = f"pair {pairs[0]}" if len(pairs) == 1 else f"one of the pairs {', '.join(map(str, pairs))}"
        super().__init__(
            f"The {what} became {value} at step {self.step}, on {which}; the weights are those of the step before. "
            "Lower the learning rate, and look at that pair."
        )


def counts_of(routing: RoutingTrace) -> dict[str, Tensor]:
    """Selections per expert (N,), int64 on the CPU, of each layer; an encoder layer's blocks together."""
    found: dict[str, Tensor] = {}
    for record in routing:
        name = f"{record.part}-{record.layer}-{record.image or record.direction}"
        count = torch.bincount(record.routing.experts.flatten().cpu().long(), minlength=record.num_experts)
        found[name] = found[name] + count if name in found else count
    return found
