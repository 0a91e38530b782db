"""The state of a training run, read from its events or its files, without Qt."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.untrusted import read_object
from napari_shmoareg.plugin.fine_tune.history import Shares, Track
from napari_shmoareg.plugin.fine_tune.scan_rows import scan_of_file
from napari_shmoareg.training.settings import upgraded

if TYPE_CHECKING:
    from napari_shmoareg.training.monitor import RoutingWatch


TERMS = ("total", "similarity", "smoothness", "routing", "overlap")
MEASURES = ("dice", "ncc", "folding_percent")
RECENT = 20  # steps that the mean time per step is taken over


@dataclass
class Alarm:
    """Collapsed routing at a gate, from `step` until `over` (None while active)."""

    step: int
    gate: str
    text: str
    over: int | None = None


class Best(NamedTuple):
    """The best validation result."""

    step: int
    measure: str
    value: float


@dataclass
class RunState:
    """The state of a run, as its events report it.

    Attributes
    ----------
    about : dict
        The event "begin" or the content of run.json: device, settings, pairs, memory and so on;
        initially empty.
    phase : dict
        The last event "phase".
    scans : list of dict
        One per checked scan.
    terms, validation : dict of Track
        The losses and the validation measures over the steps.
    shares : dict of Shares
        Of the experts, per gate.
    alarms : dict of Alarm
        Per gate, including those that are over.
    skipped : list of (pair, reason)
    saved : dict
        Step of the last saved "state" and "best".
    preview : dict
        The last event "preview".
    paused : bool
    error : str
    end : dict
        The event "end"; initially empty.
    garbled : list of str
        Invalid events, with the error.
    """

    about: dict[str, Any] = field(default_factory=dict)
    phase: dict[str, Any] = field(default_factory=dict)
    scans: list[dict[str, Any]] = field(default_factory=list)
    terms: dict[str, Track] = field(default_factory=lambda: {name: Track() for name in TERMS})
    validation: dict[str, Track] = field(
        default_factory=lambda: {name: Track() for name in MEASURES}
    )
    shares: dict[str, Shares] = field(default_factory=dict)
    alarms: dict[str, Alarm] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    saved: dict[str, int] = field(default_factory=dict)
    preview: dict[str, Any] = field(default_factory=dict)
    paused: bool = False
    error: str = ""
    end: dict[str, Any] = field(default_factory=dict)
    garbled: list[str] = field(default_factory=list)
    step: int = 0
    steps: int = 0
    left_seconds: float | None = None
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply one event; an invalid one is only added to `garbled`."""
        handler = getattr(self, f"_on_{event.get('event')}", None)
        try:
            if handler is None:
                raise KeyError("event")
            handler(event)
        except (KeyError, TypeError, ValueError) as error:
            self.garbled.append(f"{error}: {dict(event)}"[:500])

    def apply_steps(self, columns: Mapping[str, NDArray]) -> None:
        """Apply many steps at once: an array (n,) for "step", "seconds" and each of `TERMS`."""
        if not len(columns["step"]):
            return
        for name in TERMS:
            self.terms[name].extend(columns["step"], columns[name])
        self._seconds.extend(float(s) for s in columns["seconds"][-RECENT:])
        self.step = int(columns["step"][-1])
        self.left_seconds = None

    def begin_process(self) -> None:
        """Clear what only a new process of the run can report."""
        self.end, self.error, self.about, self.phase, self.paused = {}, "", {}, {}, False
        self.scans, self.left_seconds = [], None
        self._seconds.clear()

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the last steps."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    @property
    def best(self) -> Best | None:
        """The best validation by Dice if there are labels, else by correlation."""
        for name in ("dice", "ncc"):
            steps, values = self.validation[name].points
            if len(values):
                return Best(int(steps[values.argmax()]), name, float(values.max()))
        return None

    def _on_begin(self, event: Mapping[str, Any]) -> None:
        resumed = int(event.get("resumed_at") or 0)
        self._on_about(event)
        self.paused, self.error, self.end, self.phase = False, "", {}, {}
        self._cut(resumed)

    def _on_about(self, event: Mapping[str, Any]) -> None:
        """Apply the run header of a run started elsewhere."""
        self.about, self.steps = dict(event), int(event["steps"])

    def _cut(self, step: int) -> None:
        for track in (*self.terms.values(), *self.validation.values()):
            track.cut(step)
        for shares in self.shares.values():
            shares.cut(step)
        self.alarms = {gate: alarm for gate, alarm in self.alarms.items() if alarm.step <= step}
        self.step = step

    def _on_phase(self, event: Mapping[str, Any]) -> None:
        self.phase = {
            "phase": str(event["phase"]),
            "done": float(event["done"]),
            "text": str(event.get("text") or ""),
        }

    def _on_scan(self, event: Mapping[str, Any]) -> None:
        row = {key: value for key, value in event.items() if key not in ("event", "time")}
        self.scans = [scan for scan in self.scans if scan["name"] != row["name"]] + [row]

    def _on_step(self, event: Mapping[str, Any]) -> None:
        step, steps, seconds, left = (
            event.get(name) for name in ("step", "steps", "seconds", "left_seconds")
        )
        values = {name: _number(event.get(name)) for name in TERMS}
        step, steps, seconds = int(step), int(steps), float(seconds)  # type: ignore[arg-type]
        for name, value in values.items():
            self.terms[name].add(step, value)
        self.step, self.steps, self.paused, self.left_seconds, self.phase = (
            step,
            steps,
            False,
            _number(left),
            {},
        )
        self._seconds.append(seconds)

    def _on_load(self, event: Mapping[str, Any]) -> None:
        step = int(event["step"])
        for gate, shares in event["shares"].items():
            self.shares.setdefault(gate, Shares()).add(step, shares)
        if event.get("alarms") is None:  # not checked
            return
        now = {str(alarm["place"]): str(alarm["text"]) for alarm in event["alarms"]}
        for gate, text in now.items():
            alarm = self.alarms.setdefault(gate, Alarm(step, gate, text))
            alarm.text, alarm.over = text, None
        for gate, alarm in self.alarms.items():
            if gate not in now and alarm.over is None:
                alarm.over = step

    def _on_validation(self, event: Mapping[str, Any]) -> None:
        values = {name: _number(event.get(name)) for name in MEASURES}
        for name, value in values.items():
            self.validation[name].add(int(event["step"]), value)

    def _on_preview(self, event: Mapping[str, Any]) -> None:
        self.preview = {"step": int(event["step"]), "folder": str(event["folder"])}

    def _on_saved(self, event: Mapping[str, Any]) -> None:
        self.saved[str(event["what"])] = int(event["step"])

    def _on_skipped(self, event: Mapping[str, Any]) -> None:
        pair = event["pair"] if "pair" in event else f"{event['moving']} and {event['fixed']}"
        self.skipped.append((str(pair), str(event["why"])))

    def _on_paused(self, event: Mapping[str, Any]) -> None:
        self.paused = True

    def _on_resumed(self, event: Mapping[str, Any]) -> None:
        self.paused = False

    def _on_error(self, event: Mapping[str, Any]) -> None:
        self.error = str(event["text"])

    def _on_end(self, event: Mapping[str, Any]) -> None:
        self.end, self.paused = (
            {"reason": str(event["reason"]), "weights": event.get("weights")},
            False,
        )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


PARTS = ("train", "validation", "test")
MAX_INTERVALS = 1000  # of the loads that are kept of a long run; charts show fewer
MAX_ALARM_CHECKS = 100  # per reading
ALARM_WINDOW = 5  # intervals over which routing is monitored, as in the run itself
Event = dict[str, Any]


@dataclass
class RunUpdate:
    """New data of a run's folder, in the order to apply: header, step columns, other events."""

    about: Event = field(default_factory=dict)
    steps: dict[str, NDArray] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def apply_to(self, state: RunState) -> None:
        """Apply the update to the state of the run."""
        if self.about:
            state.apply(self.about)
        if self.steps:
            state.apply_steps(self.steps)
        for event in self.events:
            state.apply(event)


class RunFiles:
    """Reads a run's folder, each time what is new since the last call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tables = {
            name: Tail(folder / f"{name}.csv")
            for name in ("metrics", "validation", "loads", "skipped")
        }
        self._about: tuple[float, ...] = ()
        self._watch: RoutingWatch | None = None
        self._scans = 0.0

    def read(self) -> RunUpdate:
        """Read what is new.

        Raises
        ------
        InputError
            If this is not the folder of a run.
        """
        update = RunUpdate()
        about = tuple(_changed(self.folder / name) for name in ("run.json", "split.json"))
        if about != self._about:
            self._about, update.about = about, read_run_header(self.folder)
            self._watch = _watch(update.about)
        with _explain_errors(self.folder / "metrics.csv"):
            update.steps = _columns(self._tables["metrics"].rows())
        with _explain_errors(self.folder / "checkup.csv"):
            update.events += (
                _scans(self.folder) if self._scans != _changed(self.folder / "checkup.csv") else []
            )
        self._scans = _changed(self.folder / "checkup.csv")
        with _explain_errors(self.folder / "loads.csv"):
            update.events += _loads(self._tables["loads"], self._watch)
        update.events += [_event("validation", row) for row in self._tables["validation"].rows()]
        update.events += [_event("skipped", row) for row in self._tables["skipped"].rows()]
        preview = _json(self.folder / "preview" / "preview.json")
        if "step" in preview:
            update.events.append(
                {
                    "event": "preview",
                    "step": preview["step"],
                    "folder": str(self.folder / "preview"),
                }
            )
        return update


class Tail:
    """The rows added to a CSV file since the last reading; all of them if it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._head, self._which = path, 0, list[str](), 0

    def rows(self) -> list[dict[str, str]]:
        """Return the new rows by column; an incomplete last row is left for the next time."""
        with _explain_errors(self._path):
            rows = list(csv.reader(io.StringIO(self._text(), newline="")))
        return [dict(zip(self._head, row, strict=False)) for row in self._without_head(rows)]

    def lines(self) -> list[str]:
        """Return the new lines of a table without quotes, without the header."""
        lines = self._text().replace("\r\n", "\n").split("\n")[:-1]
        rest = self._without_head([line.split(",") for line in lines[:1]])
        return lines[1 - len(rest) :] if lines else []

    def _text(self) -> str:
        """Return the new text, up to the end of the last complete row."""
        try:
            about = self._path.stat()
        except FileNotFoundError:
            return ""
        if about.st_size < self._at or about.st_ino != self._which:
            self._at, self._which = 0, about.st_ino
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        end = text.rfind(b"\n") + 1
        while end and text.count(b'"', 0, end) % 2:  # within a cell of several lines
            end = text.rfind(b"\n", 0, end - 1) + 1
        self._at += end
        return text[:end].decode("utf-8", errors="replace")

    def _without_head(self, rows: list[list[str]]) -> list[list[str]]:
        """Store the header row, and return the other rows."""
        if rows and (not self._head or rows[0] == self._head):
            self._head, rows = rows[0], rows[1:]
        return rows

    @property
    def head(self) -> Sequence[str]:
        """The names of the columns; empty before the first reading."""
        return self._head


def read_run_header(folder: Path) -> Event:
    """Read the header of a run as an event.

    Raises
    ------
    InputError
        If this is not the folder of a run.
    """
    about = _json(folder / "run.json")
    if not str(about.get("format", "")).startswith("shmoareg-run"):
        raise InputError(
            f"{folder} is not the folder of a run: it has no valid run.json. Choose the folder"
            " given as --out, or the one in which this panel started a run."
        )
    parts = {name: about.get(name) or {} for name in ("settings", "config", "run", "dataset")}
    settings, config = upgraded(parts["settings"]), parts["config"]
    if not all(isinstance(part, dict) for part in parts.values()) or not isinstance(
        config.get("top_k", 0), int
    ):
        raise InputError(
            f"{folder / 'run.json'} is damaged: expected objects for {', '.join(parts)}, and an"
            " integer top_k. Choose another run, or restore the file."
        )
    return {
        "event": "about",
        "run": str(folder),
        "steps": settings.get("steps", 0),
        "settings": settings,
        "run_settings": parts["run"],
        "dataset": parts["dataset"],
        "kernels": config.get("kernels") or [],
        "top_k": config.get("top_k", 0),
    }


def read_split(folder: Path) -> dict[str, str]:
    """Return the subset of each scan by name; empty before the run has split them."""
    split = _json(folder / "split.json")
    lists = {part: split.get(part, ()) for part in PARTS}
    return {
        str(name): part
        for part, names in lists.items()
        if isinstance(names, list)
        for name in names
    }


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    """Convert errors in a table to errors that name the file."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error!s:.200}): expected a table written by a run."
        ) from error


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, NDArray]:
    """Convert rows of steps to arrays; empty cells are NaN."""
    if not rows:
        return {}
    names = ("step", "seconds", *TERMS)
    return {
        name: np.array([row.get(name) or "nan" for row in rows]).astype(float) for name in names
    }


def _loads(table: Tail, watch: RoutingWatch | None) -> Iterator[Event]:
    """Yield loads per interval, thinned out for a long run; check alarms periodically."""
    lines = table.lines()
    intervals = [list(group) for _, group in groupby(lines, key=lambda line: line.split(",", 1)[0])]
    every, check_every = (1 + len(intervals) // n for n in (MAX_INTERVALS, MAX_ALARM_CHECKS))
    gate, count = (
        table.head.index(name) if name in table.head else 0 for name in ("place", "count")
    )
    for left, interval in zip(range(len(intervals) - 1, -1, -1), intervals, strict=True):
        checked = watch is not None and left % check_every == 0
        if left % every and not checked and left > ALARM_WINDOW + check_every:
            continue
        counts: dict[str, list[int]] = {}
        for line in interval:
            cells = line.split(",")
            counts.setdefault(cells[gate], []).append(int(cells[count]))
        step = int(interval[0].split(",", 1)[0])
        event: Event = {"event": "load", "step": step, "alarms": None}
        event["shares"] = {
            name: [n / max(sum(row), 1) for n in row] for name, row in counts.items()
        }
        if watch is not None:
            watch.add(step, counts)
            event["alarms"] = [alarm._asdict() for alarm in watch.alarms] if checked else None
        yield event


def _watch(about: Event) -> RoutingWatch | None:
    """Return a monitor of the routing; None if the network's top k is unknown."""
    from napari_shmoareg.training.monitor import RoutingWatch

    return (
        RoutingWatch({"encoder": about["top_k"], "decoder": 1}, window=ALARM_WINDOW)
        if about["top_k"]
        else None
    )


def _scans(folder: Path) -> Iterator[Event]:
    for row in Tail(folder / "checkup.csv").rows():
        yield {"event": "scan", **scan_of_file(row)}


def _event(name: str, row: Mapping[str, str]) -> Event:
    """Convert a row to an event; empty cells become None."""
    return {"event": name, **{key: value if value != "" else None for key, value in row.items()}}


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or incomplete."""
    try:
        return read_object(path, "a file of a run")
    except InputError:
        return {}


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
