"""Expert loads: how often each expert is chosen.  Fig. 5, Sec. V-D."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.model.routing import LARGEST_NUMBER, GateId, RoutingTrace

MAX_COUNT = 2**53


@dataclass(frozen=True, eq=False)
class ExpertLoad:
    """Counts of selections per gate and expert; loads of several pairs add with ``+``.

    Parameters
    ----------
    counts : mapping of GateId to (N,) int64
        How many cells (tokens, voxels) chose each of the N experts.
    cells : mapping of GateId to int
        How many cells were counted; each chooses k experts, so counts sum to k * cells.
    """

    counts: Mapping[GateId, NDArray[np.int64]]
    cells: Mapping[GateId, int]

    @classmethod
    def of(
        cls, trace: RoutingTrace, network_shape: tuple[int, int, int] | None = None
    ) -> ExpertLoad:
        """Count a trace.

        Padding is not counted: the network crops its records to the ceil(shape / stride) cells
        that hold image, so every cell of a record is valid.

        Parameters
        ----------
        trace : RoutingTrace
            Of one forward; every item of its batch is counted.
        network_shape : tuple of 3 int, optional
            Shape of the network grid in voxels, to check that.

        Raises
        ------
        ValueError
            If a record has another number of cells than the network grid at its stride.
        """
        counts: dict[GateId, NDArray[np.int64]] = {}
        cells: dict[GateId, int] = {}
        for record in trace:
            experts = record.routing.experts
            if network_shape is not None:
                expected = tuple(-(-n // record.stride) for n in network_shape)
                if tuple(experts.shape[2:]) != expected:
                    raise ValueError(
                        f"The routing of {record.name} has {tuple(experts.shape[2:])} cells; a"
                        f" network grid of {network_shape} voxels has {expected} at stride"
                        f" {record.stride}. Crop the padding off first."
                    )
            gate = record.gate
            found = np.bincount(
                experts.numpy(force=True).ravel(), minlength=record.num_experts
            ).astype(np.int64)
            counts[gate] = counts.get(gate, 0) + found
            cells[gate] = cells.get(gate, 0) + experts.numel() // experts.shape[1]
        return cls(counts, cells)

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, object]], top_k: Mapping[GateId, int] | None = None
    ) -> ExpertLoad:
        """Rebuild from `rows`, whose values may be text as read from a CSV file.

        Parameters
        ----------
        rows : iterable of mappings
            With part, layer, block, image, direction, expert, count; empty text is None.
        top_k : mapping of GateId to int, optional
            Experts per cell; 1 by default (this only matters to `share_of_tokens`).

        Raises
        ------
        KeyError, ValueError
            If a column is missing, or holds no whole number from 0 (an expert: below
            `LARGEST_NUMBER`).
        """
        found: dict[GateId, dict[int, int]] = {}
        for row in rows:
            fields = {name: row[name] if row[name] != "" else None for name in GateId._fields}
            whole = [name for name in ("layer", "block") if fields[name] is not None]
            gate = GateId.parse(
                fields | {name: _whole(row, name, LARGEST_NUMBER) for name in whole}
            )
            expert, count = _whole(row, "expert", LARGEST_NUMBER), _whole(row, "count", MAX_COUNT)
            if found.setdefault(gate, {}).setdefault(expert, count) != count:
                raise ValueError(
                    f"expert {expert} of {gate.part} layer {gate.layer} has two counts"
                )
        counts = {
            p: np.array([c.get(e, 0) for e in range(max(c) + 1)], dtype=np.int64)
            for p, c in found.items()
        }
        return cls(counts, {p: int(c.sum()) // (top_k or {}).get(p, 1) for p, c in counts.items()})

    @classmethod
    def from_entries(cls, entries: Iterable[Mapping[str, Any]]) -> ExpertLoad:
        """Rebuild from `entries`, as stored in report.json.

        Raises
        ------
        KeyError, TypeError, ValueError
            If an entry is not of a gate, or its counts are not whole numbers from 0.
        """
        counts: dict[GateId, NDArray[np.int64]] = {}
        cells: dict[GateId, int] = {}
        for entry in entries:
            gate, found = GateId.parse(entry), entry["counts"]
            if not isinstance(found, list) or not 1 <= len(found) <= LARGEST_NUMBER:
                raise ValueError(f"a gate has 1 to {LARGEST_NUMBER} experts")
            if not all(type(n) is int and 0 <= n < MAX_COUNT for n in (*found, entry["cells"])):
                raise ValueError(f"the counts of {gate} are no whole numbers")
            counts[gate], cells[gate] = np.array(found, dtype=np.int64), entry["cells"]
        return cls(counts, cells)

    def entries(self) -> list[dict[str, Any]]:
        """One dict per gate, for JSON: its fields, cells and counts."""
        return [
            gate._asdict() | {"cells": self.cells[gate], "counts": counts.tolist()}
            for gate, counts in self.counts.items()
        ]

    def top_k(self, gate: GateId) -> int:
        """Number of experts that each cell of a gate chose, k."""
        return round(int(self.counts[gate].sum()) / max(self.cells[gate], 1))

    def __add__(self, other: ExpertLoad) -> ExpertLoad:
        """Counts of both; gates that only one of them has are kept."""
        counts, cells = dict(self.counts), dict(self.cells)
        for gate, more in other.counts.items():
            counts[gate] = counts[gate] + more if gate in counts else more
            cells[gate] = cells.get(gate, 0) + other.cells[gate]
        return ExpertLoad(counts, cells)

    def __iter__(self) -> Iterator[GateId]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def share(self) -> dict[GateId, NDArray[np.float64]]:
        """Share of selections (N,): counts / (k * cells), summing to 1 at every gate."""
        return {gate: count / max(int(count.sum()), 1) for gate, count in self.counts.items()}

    @property
    def share_of_tokens(self) -> dict[GateId, NDArray[np.float64]]:
        """Fraction of cells that chose each expert (N,): counts / cells, summing to k at every
        gate.
        """
        return {gate: count / max(self.cells[gate], 1) for gate, count in self.counts.items()}

    def select(self, **where: object) -> ExpertLoad:
        """Select gates by their fields: ``load.select(part="encoder", image="fixed")``."""
        selected = [gate for gate in self.counts if gate.matches(**where)]
        return ExpertLoad(
            {p: self.counts[p] for p in selected}, {p: self.cells[p] for p in selected}
        )

    def over_blocks(self) -> ExpertLoad:
        """Sum over the blocks of each layer (``block`` None), as in Fig. 5."""
        total = ExpertLoad({}, {})
        for gate, count in self.counts.items():
            whole = gate._replace(block=None)
            total = total + ExpertLoad({whole: count}, {whole: self.cells[gate]})
        return total

    def rows(self) -> list[dict[str, object]]:
        """One dict per gate and expert: part, layer, block, image, direction, expert, count,
        share.
        """
        share = self.share
        return [
            gate._asdict()
            | {
                "expert": expert,
                "count": int(count),
                "share": float(share[gate][expert]),
            }
            for gate, counts in self.counts.items()
            for expert, count in enumerate(counts)
        ]


def _whole(row: Mapping[str, object], key: str, below: int) -> int:
    """Parse a whole number of a row."""
    text = str(row[key])
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < below):
        raise ValueError(
            f"{key} is '{text:.40}'; a whole number from 0 to {below - 1} was expected"
        )
    return int(text)


def share_spread(loads: Sequence[ExpertLoad]) -> dict[GateId, NDArray[np.float64]]:
    """Standard deviation (n - 1) over pairs of the share of selections, (N,) per gate.

    Gates of fewer than two loads are left out.

    Parameters
    ----------
    loads : sequence of ExpertLoad
        One per pair, of the same network.
    """
    shares: dict[GateId, list[NDArray[np.float64]]] = {}
    for load in loads:
        for gate, share in load.share.items():
            shares.setdefault(gate, []).append(share)
    return {gate: np.std(found, axis=0, ddof=1) for gate, found in shares.items() if len(found) > 1}


def repeated(names: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Positions of repeated names: (first occurrence, this occurrence), from 1.

    A repeated pair weighs twice in a load, and makes the spread over pairs look too small."""
    first: dict[Hashable, int] = {}
    return [(first[n], at) for at, n in enumerate(names, start=1) if first.setdefault(n, at) != at]
