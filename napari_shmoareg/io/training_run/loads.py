"""The selections of the experts that a run wrote down."""

from __future__ import annotations

from pathlib import Path

from napari_shmoareg.analysis.collapse import RoutingWatch
from napari_shmoareg.io.training_run.step_table import read_rows

ADDED_UP = 10  # steps whose selections make one line of loads.csv
WATCHED = 5  # such lines over which routing is watched


def watch_of(path: Path, top_k: int, *, last: int | None = None) -> RoutingWatch:
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
    added: dict[int, dict[str, list[int]]] = {}
    for row in read_rows(path):
        if last is None or int(row["step"]) <= last:
            added.setdefault(int(row["step"]), {}).setdefault(row["place"], []).append(int(row["count"]))
    for step, counts in sorted(added.items()):
        watch.add(step, counts)
    return watch
