"""Collapse of the routing during training.

A gate has collapsed when it sends all cells the same way: its other experts no longer learn, and
seldom come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.training.logs import read_rows

WINDOW = 50  # steps whose selections are added up
# of the way from one choice (0) to even loads (1), below which routing counts as collapsed
EVEN = 0.05
FALLEN = 0.5  # of the evenness that learning began with


class Alarm(NamedTuple):
    """A layer whose routing has collapsed, or is about to.

    Attributes
    ----------
    place : str
        "encoder-1-moving", "decoder-1-x"
    text : str
        What is seen, and what may help.
    """

    place: str
    text: str


class RoutingWatch:
    """Loads over the last steps, and what is wrong with them.

    Ours: evenness is (exp(H) - k) / (N - k), with H the entropy of the shares of selections: exp(H)
    is how many experts are in use, k where every cell chooses the same ones and N where all are
    chosen alike.  An alarm is raised below 0.05, and where it has fallen to less than half of what
    the first window had.

    Parameters
    ----------
    top_k : mapping of str to int
        Experts that each cell chooses, by part: {"encoder": 4, "decoder": 1}.
    window : int
        Steps.
    """

    def __init__(self, top_k: Mapping[str, int], window: int = WINDOW) -> None:
        self._top_k, self._window = top_k, window
        self._recent: dict[str, deque[NDArray[np.int64]]] = {}
        self._first: dict[str, float] = {}
        self.step = 0

    def add(self, step: int, counts: Mapping[str, Sequence[int]]) -> None:
        """Take down one step's selections by layer, as in `Step.counts`."""
        self.step = step
        for gate, count in counts.items():
            row = self._recent.setdefault(gate, deque(maxlen=self._window))
            row.append(np.asarray(count, dtype=np.int64))
            if gate not in self._first and len(row) == self._window:
                self._first[gate] = self._evenness(gate)

    @property
    def shares(self) -> dict[str, list[float]]:
        """Shares of selections per expert over the window, summing to 1 at every place."""
        return {gate: self._share(gate).tolist() for gate in self._recent}

    @property
    def alarms(self) -> list[Alarm]:
        """What is wrong now; nothing before the first window is full."""
        found = []
        for gate, first in self._first.items():
            now, share = self._evenness(gate), self._share(gate)
            if now < EVEN:
                text = (
                    f"{_gate_label(gate)}: routing has collapsed: {_most(share)}, and evenness is"
                    f" {now:.2f} (0 where all choose the same, 1 where loads are even). Lower the"
                    " learning rate, go back to the best weights, or give balance_weight (encoder)"
                    " or routing_weight (decoder) more."
                )
            elif now < FALLEN * first:
                text = (
                    f"{_gate_label(gate)}: fewer experts are in use: evenness fell from {first:.2f} to"
                    f" {now:.2f}; {_most(share)}. Watch it; a lower learning rate may stop it."
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


ADDED_UP = 10  # steps whose selections make one line of loads.csv
WATCHED = 5  # such lines over which routing is watched


def routing_watch(path: Path, top_k: int, *, last: int | None = None) -> RoutingWatch:
    """A watch that has seen what was written.

    Parameters
    ----------
    path : Path
        Of loads.csv; it may be missing.
    top_k : int
        Attention heads that each token chooses.
    last : int, optional
        The last step that counts.
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
