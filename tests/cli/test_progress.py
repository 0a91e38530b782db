"""Progress runs forward, and where no bar can be drawn it is a few lines."""

from __future__ import annotations

import itertools

import pytest

from napari_shmoareg.cli.console import progress
from napari_shmoareg.registration.progress import registration_phases
from napari_shmoareg.registration.register import PHASES


@pytest.mark.parametrize("steps", [0, 100])
def test_every_phase_of_a_registration_has_its_part_of_the_whole(steps: int):
    known = registration_phases(steps)
    assert set(PHASES) <= set(known)
    assert (known["refine"].end - known["refine"].start > 0.4) == (steps == 100)
    parts = [known[name] for name in ("loading", "reading", *PHASES, "measuring")]
    assert parts[0].start == 0 and parts[-1].end == 1
    assert all(one.end == next_.start for one, next_ in itertools.pairwise(parts))


def test_a_log_gets_a_line_per_phase_and_per_tenth_of_a_long_one(capsys):
    with progress() as report:
        for phase in ("align", "network"):
            for fraction in (0.0, 0.4, 1.0):
                report(phase, fraction)
        for step in range(1, 101):
            report(f"learning, loss {step}", step / 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["align ...", "network ..."]
    assert 2 < len(lines) < 16


def test_quiet_is_quiet(capsys):
    with progress(quiet=True) as report:
        report("align", 0.5)
    assert capsys.readouterr() == ("", "")


def test_a_bar_never_runs_back(monkeypatch):
    seen: list[float] = []
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    monkeypatch.setattr(
        "rich.progress.Progress.update", lambda self, task, **state: seen.append(state["completed"])
    )
    with progress(parts=registration_phases()) as report:
        for phase, fraction in (
            ("align", 1.0),
            ("conform", 0.0),
            ("align", 0.0),
            ("warp", 0.5),
            ("done", 1.0),
        ):
            report(phase, fraction)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)
