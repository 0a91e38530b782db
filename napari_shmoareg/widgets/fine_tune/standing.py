"""How a run stands, in words, and what can be done with it.  No Qt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from napari_shmoareg.widgets.fine_tune.known import Known

OVER = "Done"
LONG = 60.0  # seconds without a word, after which that is told
ASKED = {"pause": "Pausing after this step…", "go": "Going on…", "stop": "Saving and stopping after this step…"}
ENDS = {
    "finished": "The run is done: {step} steps.",
    "stopped": "The run was stopped after step {step}; it can be resumed.",
    "minutes": "The minutes of the run are over, after step {step}; it can be resumed with more.",
    "failed": "The run failed after step {step}.",
}
PHASES = {
    "reading": "Looking at the data set",
    "checkup": "Checking the scans",
    "preparing": "Preparing",
    "training": "Learning",
    "validating": "Judging by the validation pairs",
}


@dataclass(frozen=True)
class Standing:
    """What the buttons say and whether they can be pressed, a text, and how far the run is (None: no bar; -1: busy).

    While a process `works` on the run it can be paused and stopped, otherwise started.
    """

    works: bool = False
    text: str = ""
    done: float | None = None
    start_says: str = "Start"
    start_does: str = "start"
    can_start: bool = False
    pause_says: str = "Pause"
    pause_does: str = "pause"
    can_pause: bool = False
    stop_says: str = "Stop"
    can_stop: bool = False
    can_use: bool = False
    uncopied: str = ""  # why there is no command to copy
    can_open: bool = True


def standing(
    known: Known,
    *,
    works: bool,
    mine: bool,
    asked: str,
    silent: float,
    missing: str | None,
    resumes: bool,
    usable: bool,
    anew: bool = False,
    uncopied: str = "",
    steps: int = 0,
) -> Standing:
    """How a run stands.

    Parameters
    ----------
    known : Known
    works : bool
        Whether a process works on it, and `mine` whether that is a child of this panel.
    mine : bool
    asked : str
        What it was asked for and has not done yet: "pause", "go", "stop" or nothing.
    silent : float
        Seconds since it told something.
    missing : str or None
        What keeps a new run from being started.
    resumes : bool
        Whether the folder in the field holds a run.
    usable : bool
        Whether it has weights to register with.
    anew : bool
        Whether the folder in the field holds a run that saved nothing, in whose place another can begin.
    uncopied : str
        Why there is no command to copy; empty if there is one.
    steps : int
        That the form asks for: a run that is done goes on only with more.
    """
    over = resumes and 0 < max(known.steps, steps) <= known.step
    paused = known.paused or asked == "go"
    return Standing(
        works=works,
        text=_text(known, works, mine, asked, silent),
        done=_done(known, works),
        start_says=OVER if over else "Resume" if resumes else missing or ("Start anew" if anew else "Start"),
        start_does="over" if over else "resume" if resumes else "anew" if anew else "start",
        can_start=not works and not over and (resumes or missing is None),
        pause_says="Go on" if paused else "Pause",
        pause_does="go" if paused else "pause",
        can_pause=works and asked == "" and bool(known.about),
        stop_says="Stopping…" if asked == "stop" else "Stop",
        can_stop=works and asked != "stop",
        can_use=usable,
        uncopied=uncopied,
        can_open=not (works and mine),
    )


def figures(known: Known) -> list[str]:
    """``1.2 s a step``, ``needs 3.1 of 12.4 GB``, ``best Dice 0.712 at step 300``: what is known."""
    found = []
    seconds, memory, best = known.seconds_a_step, known.about.get("memory"), known.best
    if seconds is not None:
        found.append(f"{seconds:.2g} s a step" if seconds < 10 else f"{seconds:.0f} s a step")
    if memory:
        found.append(_memory(memory))
    if precision := known.about.get("bfloat16"):
        found.append(f"{'bfloat16' if precision['used'] else 'float32'} ({precision['why']})")
    if best is not None:
        found.append(f"best {'Dice' if best.measure == 'dice' else 'correlation'} {best.value:.3f} at step {best.step}")
    return found


def length(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _text(known: Known, works: bool, mine: bool, asked: str, silent: float) -> str:
    lines = []
    if works and asked:
        lines.append(ASKED[asked])
    elif works and known.paused:
        lines.append(f"Paused at step {known.step} of {known.steps}.")
    elif works and known.phase and known.phase["phase"] != "training":
        phase = known.phase
        said, what = PHASES.get(phase["phase"], phase["phase"]), f": {phase['text']}" if phase["text"] else ""
        lines.append(f"{said}{what} ({100 * phase['done']:.0f} %)")
    elif works and not known.step:
        lines.append("Starting…")
    elif works:
        left = "" if known.left_seconds is None else f", about {length(known.left_seconds)} left"
        lines.append(f"Step {known.step} of {known.steps}{left}.")
    elif known.end:
        lines.append(ENDS.get(known.end["reason"], "The run ended after step {step}.").format(step=known.step))
    elif known.about or known.step:
        lines.append(f"Step {known.step} of {known.steps}; nobody works on this run now.")
    if known.error and not works:
        lines.append(known.error)
    if works and not mine:
        lines.append("Another process works on it.")
    told = figures(known)
    if told:
        text = "; ".join(told)
        lines.append(f"{text[0].upper()}{text[1:]}.")
    if silent > LONG and works and not known.paused:
        lines.append(f"No word for {length(silent)}.")
    if known.skipped:
        lines.append(f"{len(known.skipped)} pairs could not be read (skipped.csv); the last: {known.skipped[-1][1]}")
    if known.garbled:
        lines.append(f"{len(known.garbled)} events could not be understood.")
    return "\n".join(lines)


def _done(known: Known, works: bool) -> float | None:
    if not works:
        return None
    phase = known.phase
    if phase and phase["phase"] != "training":
        return float(phase["done"])
    return known.step / known.steps if known.step and known.steps else -1.0


def _memory(memory: Mapping[str, Any]) -> str:
    need, free = memory.get("need"), memory.get("free")
    if need is None:
        return "memory unknown"
    return f"needs {need / 1e9:.1f} GB" + ("" if free is None else f" of {free / 1e9:.1f} GB free")
