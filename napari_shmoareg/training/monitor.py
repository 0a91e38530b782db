"""Detection of routing collapse during training.

A gate has collapsed when it sends all cells to the same experts: the others are no longer trained
and seldom recover.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.training.logs import read_rows

WINDOW = 50  # steps whose selections are summed
# evenness, from one choice (0) to even loads (1), below which routing counts as collapsed
EVEN = 0.05
FALLEN = 0.5  # share of the initial evenness


class Alarm(NamedTuple):
    """A gate whose routing has collapsed or is about to.

    Attributes
    ----------
    place : str
        "encoder-1-moving", "decoder-1-x"
    text : str
        What is wrong and what may help.
    """

    place: str
    text: str


class RoutingWatch:
    """Expert loads over the last steps, and alarms.

    Ours: evenness is (exp(H) - k) / (N - k), with H the entropy of the shares of selections: exp(H)
    is the number of experts in use: k if every cell chooses the same ones, N if all are chosen
    equally often. An alarm is raised below 0.05, and below half of the evenness of the first
    window.

    Parameters
    ----------
    top_k : mapping of str to int
        Number of experts that each cell chooses, by part: {"encoder": 4, "decoder": 1}.
    window : int
        Steps.
    """

    def __init__(self, top_k: Mapping[str, int], window: int = WINDOW) -> None:
        self._top_k, self._window = top_k, window
        self._recent: dict[str, deque[NDArray[np.int64]]] = {}
        self._first: dict[str, float] = {}
        self.step = 0

    def add(self, step: int, counts: Mapping[str, Sequence[int]]) -> None:
        """Add the selections of one step, as in `Step.counts`."""
        self.step = step
        for gate, count in counts.items():
            row = self._recent.setdefault(gate, deque(maxlen=self._window))
            row.append(np.asarray(count, dtype=np.int64))
            if gate not in self._first and len(row) == self._window:
                self._first[gate] = self._evenness(gate)

    @property
    def shares(self) -> dict[str, list[float]]:
        """Shares of selections per expert over the window; they sum to 1 for each gate."""
        return {gate: self._share(gate).tolist() for gate in self._recent}

    @property
    def alarms(self) -> list[Alarm]:
        """Current alarms; none before the first window is full."""
        found = []
        for gate, first in self._first.items():
            now, share = self._evenness(gate), self._share(gate)
            if now < EVEN:
                text = (
                    f"{_gate_label(gate)}: routing has collapsed: {_most(share)}, and evenness"
                    f" is {now:.2f} (0: all choose the same, 1: even loads). Lower the learning"
                    " rate, return to the best weights, or increase balance_weight (encoder) or"
                    " routing_weight (decoder)."
                )
            elif now < FALLEN * first:
                text = (
                    f"{_gate_label(gate)}: fewer experts are in use: evenness fell from"
                    f" {first:.2f} to {now:.2f}; {_most(share)}. Keep an eye on it; a lower"
                    " learning rate may help."
                )
            else:
                continue
            found.append(Alarm(gate, text))
        return found

    def _share(self, gate: str) -> NDArray[np.float64]:
        total = np.sum(self._recent[gate], axis=0)
        return total / max(int(total.sum()), 1)

    def _evenness(self, gate: str) -> float:
        share = self._share(gate)
        used, k = share[share > 0], self._top_k[gate.split("-")[0]]
        if len(share) <= k:
            return 1.0
        return float((np.exp(-(used * np.log(used)).sum()) - k) / (len(share) - k))


def _gate_label(gate: str) -> str:
    part, layer, which = gate.split("-")
    return f"{part} layer {layer}, {which}"


def _most(share: NDArray[np.float64]) -> str:
    best = int(share.argmax())
    return f"expert {best} has {100 * share[best]:.0f} % of the selections"


ADDED_UP = 10  # steps summed in one row of loads.csv
WATCHED = 5  # rows in the window of the watch


def routing_watch(path: Path, top_k: int, *, last: int | None = None) -> RoutingWatch:
    """A watch initialised from a loads table.

    Parameters
    ----------
    path : Path
        Path of loads.csv; it may be missing.
    top_k : int
        Number of attention heads that each token chooses.
    last : int, optional
        Later steps are ignored.
    """
    watch = RoutingWatch({"encoder": top_k, "decoder": 1}, window=WATCHED)
    counted: dict[int, dict[str, list[int]]] = {}
    for row in read_rows(path):
        if last is None or int(row["step"]) <= last:
            counted.setdefault(int(row["step"]), {}).setdefault(row["place"], []).append(
                int(row["count"])
            )
    for step, counts in sorted(counted.items()):
        watch.add(step, counts)
    return watch
