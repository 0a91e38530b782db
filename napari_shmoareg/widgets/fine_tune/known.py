"""What is known of a run, from its events or its files.  No Qt."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from napari_shmoareg.widgets.fine_tune.history import Shares, Track

TERMS = ("total", "similarity", "smoothness", "routing", "overlap")
JUDGED = ("dice", "ncc", "folding_percent")
RECENT = 20  # steps whose time is told


@dataclass
class Alarm:
    """A gate that collapsed: the step it was first seen at, what it says, and when it was over (None: it is not)."""

    step: int
    place: str
    text: str
    over: int | None = None


class Best(NamedTuple):
    """The best look at the validation pairs."""

    step: int
    measure: str
    value: float


@dataclass
class Known:
    """A run as far as it told of itself.

    Attributes
    ----------
    about : dict
        The event "begin", or what run.json tells: device, settings, pairs, memory and so on; empty before it.
    phase : dict
        The last event "phase".
    scans : list of dict
        One per scan of the check-up.
    terms, judged : dict of Track
        The losses, and the figures on the validation pairs, over the steps.
    shares : dict of Shares
        Of the experts, per place.
    alarms : dict of Alarm
        Per place: those that are over too.
    skipped : list of (pair, why)
    saved : dict
        Step of the last "state" and "best" on the disk.
    preview : dict
        The last event "preview".
    paused : bool
    error : str
    end : dict
        The event "end"; empty as long as there was none.
    garbled : list of str
        What events could not be understood, and why.
    """

    about: dict[str, Any] = field(default_factory=dict)
    phase: dict[str, Any] = field(default_factory=dict)
    scans: list[dict[str, Any]] = field(default_factory=list)
    terms: dict[str, Track] = field(default_factory=lambda: {name: Track() for name in TERMS})
    judged: dict[str, Track] = field(default_factory=lambda: {name: Track() for name in JUDGED})
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

    def take(self, event: Mapping[str, Any]) -> None:
        """Learn from one event; one that cannot be understood is kept in `garbled` and changes nothing else."""
        act = getattr(self, f"_take_{event.get('event')}", None)
        try:
            if act is None:
                raise KeyError("event")
            act(event)
        except (KeyError, TypeError, ValueError) as error:
            self.garbled.append(f"{error}: {dict(event)}"[:500])

    def take_steps(self, columns: Mapping[str, NDArray]) -> None:
        """Learn from many steps at once: an array (n,) for "step", "seconds" and each of `TERMS`."""
        if not len(columns["step"]):
            return
        for name in TERMS:
            self.terms[name].extend(columns["step"], columns[name])
        self._seconds.extend(float(s) for s in columns["seconds"][-RECENT:])
        self.step = int(columns["step"][-1])
        self.left_seconds = None

    def start_anew(self) -> None:
        """A process begins to work on it: what only that tells is not known yet."""
        self.end, self.error, self.about, self.phase, self.paused = {}, "", {}, {}, False
        self.scans, self.left_seconds = [], None
        self._seconds.clear()

    @property
    def seconds_a_step(self) -> float | None:
        """Mean of the last steps."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    @property
    def best(self) -> Best | None:
        """By Dice where there are labels, else by correlation."""
        for name in ("dice", "ncc"):
            steps, values = self.judged[name].points
            if len(values):
                return Best(int(steps[values.argmax()]), name, float(values.max()))
        return None

    def _take_begin(self, event: Mapping[str, Any]) -> None:
        resumed = int(event.get("resumed_at") or 0)
        self._take_about(event)
        self.paused, self.error, self.end, self.phase = False, "", {}, {}
        self._cut(resumed)

    def _take_about(self, event: Mapping[str, Any]) -> None:
        """What run.json tells of a run that others began."""
        self.about, self.steps = dict(event), int(event["steps"])

    def _cut(self, step: int) -> None:
        for track in (*self.terms.values(), *self.judged.values()):
            track.cut(step)
        for shares in self.shares.values():
            shares.cut(step)
        self.alarms = {place: alarm for place, alarm in self.alarms.items() if alarm.step <= step}
        self.step = step

    def _take_phase(self, event: Mapping[str, Any]) -> None:
        self.phase = {"phase": str(event["phase"]), "done": float(event["done"]), "text": str(event.get("text") or "")}

    def _take_scan(self, event: Mapping[str, Any]) -> None:
        row = {key: value for key, value in event.items() if key not in ("event", "time")}
        self.scans = [scan for scan in self.scans if scan["name"] != row["name"]] + [row]

    def _take_step(self, event: Mapping[str, Any]) -> None:
        step, steps, seconds, left = (event.get(name) for name in ("step", "steps", "seconds", "left_seconds"))
        values = {name: _number(event.get(name)) for name in TERMS}
        step, steps, seconds = int(step), int(steps), float(seconds)  # type: ignore[arg-type]
        for name, value in values.items():
            self.terms[name].add(step, value)
        self.step, self.steps, self.paused, self.left_seconds, self.phase = step, steps, False, _number(left), {}
        self._seconds.append(seconds)

    def _take_load(self, event: Mapping[str, Any]) -> None:
        step = int(event["step"])
        for place, shares in event["shares"].items():
            self.shares.setdefault(place, Shares()).add(step, shares)
        if event.get("alarms") is None:  # nobody looked
            return
        now = {str(alarm["place"]): str(alarm["text"]) for alarm in event["alarms"]}
        for place, text in now.items():
            alarm = self.alarms.setdefault(place, Alarm(step, place, text))
            alarm.text, alarm.over = text, None
        for place, alarm in self.alarms.items():
            if place not in now and alarm.over is None:
                alarm.over = step

    def _take_validation(self, event: Mapping[str, Any]) -> None:
        values = {name: _number(event.get(name)) for name in JUDGED}
        for name, value in values.items():
            self.judged[name].add(int(event["step"]), value)

    def _take_preview(self, event: Mapping[str, Any]) -> None:
        self.preview = {"step": int(event["step"]), "folder": str(event["folder"])}

    def _take_saved(self, event: Mapping[str, Any]) -> None:
        self.saved[str(event["what"])] = int(event["step"])

    def _take_skipped(self, event: Mapping[str, Any]) -> None:
        pair = event["pair"] if "pair" in event else f"{event['moving']} and {event['fixed']}"
        self.skipped.append((str(pair), str(event["why"])))

    def _take_paused(self, event: Mapping[str, Any]) -> None:
        self.paused = True

    def _take_resumed(self, event: Mapping[str, Any]) -> None:
        self.paused = False

    def _take_error(self, event: Mapping[str, Any]) -> None:
        self.error = str(event["text"])

    def _take_end(self, event: Mapping[str, Any]) -> None:
        self.end, self.paused = {"reason": str(event["reason"]), "weights": event.get("weights")}, False


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
