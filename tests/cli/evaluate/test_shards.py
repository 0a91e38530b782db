"""Shards of an evaluation as real processes: started together, one of them killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from .conftest import PATTERNS, QUICK, rows_of

pytestmark = pytest.mark.slow


@pytest.fixture
def start(cohort, weights):
    """Start the command in a process of its own."""
    started = []

    def run(out, *options):
        words = ("evaluate", cohort, *PATTERNS, "--weights", weights, *QUICK, "--out", out)
        words += options
        command = [sys.executable, "-m", "napari_shmoareg", *map(str, words)]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **silent))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def here(shmoareg, cohort, weights):
    """Run the command in this process."""

    def run(out, *options):
        result = shmoareg(
            "evaluate", cohort, *PATTERNS, "--weights", weights, *QUICK, "--out", out, *options
        )
        assert result.exit_code == 0, result.stderr

    return run


def without_seconds(path):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows_of(path)]


def test_shards_that_start_together_one_of_them_killed_make_the_tables_of_one_run(
    start, here, tmp_path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first, second = (start(parts, "--shard", f"{n}/2") for n in (1, 2))
    deadline = time.monotonic() + 100
    while not list((parts / "cases").glob("[0-9]*.json")):
        assert time.monotonic() < deadline and first.poll() is None, "no case came"
        time.sleep(0.005)
    first.kill()
    assert first.wait() == -9
    said = second.communicate(timeout=120)[1]
    assert second.returncode == 0, said
    killed = {path.name for path in (parts / "cases").glob("[0-9]*.json")}
    assert {f"{n:04d}.json" for n in range(2, 13, 2)} <= killed and len(killed) < 12
    assert "**Not finished:" in (parts / "summary.md").read_text(encoding="utf-8")
    here(parts, "--shard", "1/2")
    here(whole)
    for name in ("pairs.csv", "labels.csv"):
        assert without_seconds(parts / name) == without_seconds(whole / name)
    kept = [
        [row for row in rows_of(place / "summary.csv") if row["measure"] != "seconds"]
        for place in (parts, whole)
    ]
    assert kept[0] == kept[1] and len(kept[0]) > 20
    plans = [
        json.loads((place / "evaluation.json").read_text(encoding="utf-8"))
        for place in (parts, whole)
    ]
    assert plans[0] == plans[1]
    hidden = [path.name for path in parts.rglob(".*") if path.is_file()]
    assert all(f"partial-{first.pid}" in name for name in hidden)
