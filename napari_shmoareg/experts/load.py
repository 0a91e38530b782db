"""How often each expert is chosen.  Fig. 5, Sec. V-D."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.model import RoutedLayer, RoutingTrace

MAX_EXPERTS = 1024  # at one place; the networks here have 12 at most
MAX_COUNT = 2**53


class Place(NamedTuple):
    """Where in the network a gate stands; fields as in `RoutedLayer`."""

    part: str
    layer: int
    block: int | None = None
    image: str | None = None
    direction: str | None = None


@dataclass(frozen=True, eq=False)
class ExpertLoad:
    """Counts of selections per place and expert; loads of several pairs add with ``+``.

    Parameters
    ----------
    counts : mapping of Place to (N,) int64
        How many cells (tokens, voxels) chose each of the N experts.
    cells : mapping of Place to int
        How many cells were counted; each chooses k experts, so counts sum to k * cells.
    """

    counts: Mapping[Place, NDArray[np.int64]]
    cells: Mapping[Place, int]

    @classmethod
    def of(
        cls, trace: RoutingTrace, network_shape: tuple[int, int, int] | None = None
    ) -> ExpertLoad:
        """Count a trace.

        Padding is never counted: the network crops its records to the
        ceil(shape / stride) cells that hold image, so every cell of a record is a valid one.

        Parameters
        ----------
        trace : RoutingTrace
            Of one forward; every item of its batch is counted.
        network_shape : tuple of 3 int, optional
            Shape of the network grid in voxels, to check that promise.

        Raises
        ------
        ValueError
            If a record has another number of cells than the network grid at its stride.
        """
        counts: dict[Place, NDArray[np.int64]] = {}
        cells: dict[Place, int] = {}
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
            place = place_of(record)
            found = np.bincount(
                experts.numpy(force=True).ravel(), minlength=record.num_experts
            ).astype(np.int64)
            counts[place] = counts.get(place, 0) + found
            cells[place] = cells.get(place, 0) + experts.numel() // experts.shape[1]
        return cls(counts, cells)

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, object]], top_k: Mapping[Place, int] | None = None
    ) -> ExpertLoad:
        """Rebuild from `rows`, whose values may be text as read from a CSV file.

        Parameters
        ----------
        rows : iterable of mappings
            With part, layer, block, image, direction, expert, count; empty text is None.
        top_k : mapping of Place to int, optional
            Experts per cell; 1 where it is not said (this only matters to `share_of_tokens`).

        Raises
        ------
        KeyError, ValueError
            If a column is missing, or is no whole number from 0 (an expert: below `MAX_EXPERTS`)
            where one belongs.
        """
        found: dict[Place, dict[int, int]] = {}
        for row in rows:
            block, image, direction = (
                row[key] if row[key] != "" else None for key in ("block", "image", "direction")
            )
            place = Place(
                str(row["part"]),
                _whole(row, "layer", MAX_COUNT),
                None if block is None else _whole(row, "block", MAX_COUNT),
                None if image is None else str(image),
                None if direction is None else str(direction),
            )
            expert, count = _whole(row, "expert", MAX_EXPERTS), _whole(row, "count", MAX_COUNT)
            if found.setdefault(place, {}).setdefault(expert, count) != count:
                raise ValueError(
                    f"expert {expert} of {place.part} layer {place.layer} has two counts"
                )
        counts = {
            p: np.array([c.get(e, 0) for e in range(max(c) + 1)], dtype=np.int64)
            for p, c in found.items()
        }
        return cls(counts, {p: int(c.sum()) // (top_k or {}).get(p, 1) for p, c in counts.items()})

    def __add__(self, other: ExpertLoad) -> ExpertLoad:
        """Counts of both; places that only one of them has are kept."""
        counts, cells = dict(self.counts), dict(self.cells)
        for place, more in other.counts.items():
            counts[place] = counts[place] + more if place in counts else more
            cells[place] = cells.get(place, 0) + other.cells[place]
        return ExpertLoad(counts, cells)

    def __iter__(self) -> Iterator[Place]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def share(self) -> dict[Place, NDArray[np.float64]]:
        """Share of selections (N,): counts / (k * cells), summing to 1 at every place."""
        return {place: count / max(int(count.sum()), 1) for place, count in self.counts.items()}

    @property
    def share_of_tokens(self) -> dict[Place, NDArray[np.float64]]:
        """Fraction of cells that chose each expert (N,): counts / cells, summing to k at every
        place.
        """
        return {place: count / max(self.cells[place], 1) for place, count in self.counts.items()}

    def select(self, **where: object) -> ExpertLoad:
        """The places whose fields have these values: ``load.select(part="encoder",
        image="fixed")``.
        """
        kept = [
            p for p in self.counts if all(getattr(p, key) == value for key, value in where.items())
        ]
        return ExpertLoad({p: self.counts[p] for p in kept}, {p: self.cells[p] for p in kept})

    def over_blocks(self) -> ExpertLoad:
        """The blocks of each layer added up (``block`` None), as Fig. 5 shows an encoder layer."""
        total = ExpertLoad({}, {})
        for place, count in self.counts.items():
            whole = place._replace(block=None)
            total = total + ExpertLoad({whole: count}, {whole: self.cells[place]})
        return total

    def rows(self) -> list[dict[str, object]]:
        """One dict per place and expert: part, layer, block, image, direction, expert, count,
        share.
        """
        share = self.share
        return [
            place._asdict()
            | {
                "expert": expert,
                "count": int(count),
                "share": float(share[place][expert]),
            }
            for place, counts in self.counts.items()
            for expert, count in enumerate(counts)
        ]


def _whole(row: Mapping[str, object], key: str, below: int) -> int:
    """A whole number of a row."""
    text = str(row[key])
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < below):
        raise ValueError(
            f"{key} is '{text:.40}'; a whole number from 0 to {below - 1} was expected"
        )
    return int(text)


def place_of(record: RoutedLayer) -> Place:
    """Where in the network a record was taken."""
    return Place(record.part, record.layer, record.block, record.image, record.direction)
