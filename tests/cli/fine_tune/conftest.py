"""A tiny data set, weights for its size, and processes that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from napari_shmoareg.geometry import Volume
from napari_shmoareg.io import save_network, write_image
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

FORKER = Path(__file__).with_name("forked_runs.py")
STEPS = 15
# A run whose steps, states and looks at the validation pairs fall on different steps.
RHYTHM = (
    "--steps",
    STEPS,
    "--save-every",
    5,
    "--validate-every",
    6,
    "--validation-pairs",
    2,
    "--no-tensorboard",
)
LEARNING = (
    "--affine",
    "none",
    "--learning-rate",
    0.001,
    "--diffeomorphic",
    0.5,
    "--overlap-weight",
    0.1,
)


@pytest.fixture(scope="session")
def scans(phantoms, tmp_path_factory) -> Path:
    """A folder of six people's scans and their labels, on two kinds of oblique grids; not to be
    changed.
    """
    folder = tmp_path_factory.mktemp("scans")
    write_scans(phantoms, folder)
    return folder


def write_scans(phantoms, folder: Path) -> None:
    """Six scans a, b, ... of slightly different anatomy and contrast, in images/ and labels/."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number, name in enumerate("abcdef"):
        role = ("moving", "fixed")[number % 2]
        image, labels = getattr(phantoms, role), getattr(phantoms, f"{role}_labels")
        shifted = [np.roll(v.values, number // 2, axis=number % 3) for v in (image, labels)]
        darker = (shifted[0] / 220) ** (1 + 0.1 * number) * 220
        write_image(
            Volume(darker.astype(np.float32), image.grid, name),
            folder / "images" / f"{name}.nii.gz",
        )
        write_image(
            Volume(shifted[1], labels.grid, name, is_labels=True),
            folder / "labels" / f"{name}.nii.gz",
        )


@pytest.fixture(scope="session")
def small(lively_network, tmp_path_factory) -> Path:
    """Weights of the smallest network, for grids of 16 voxels."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    network = SHMoAReg(SHMoARegConfig.preset("tiny", size=16))
    network.load_state_dict(lively_network(0.03).state_dict())
    save_network(network, path, card={"title": "untrained"})
    return path


@pytest.fixture(scope="session")
def begin(scans, small):
    """The words that begin a run in a folder; further words replace earlier ones."""

    def words(out: Path, *more: object) -> list[str]:
        where = (
            scans,
            "--images",
            "images/*.nii.gz",
            "--labels",
            "labels/*.nii.gz",
            "--split",
            "4/2/0",
        )
        return [
            str(w)
            for w in ("fine-tune", *where, "--from", small, "--out", out, *RHYTHM, *LEARNING, *more)
        ]

    return words


class Forker:
    """Runs commands in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._last: RunningCommand | None = None
        self._process = subprocess.Popen(
            [sys.executable, str(FORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(self, words, *, die=None, stdin=None, stdout=None) -> RunningCommand:
        """Start a command, when the last one has ended."""
        self._end_last()
        self._count += 1
        told = stdout or self._folder / f"{self._count}.jsonl"
        order = {"arguments": [str(w) for w in words], "stdout": str(told)}
        order |= {} if die is None else {"die": list(die)}
        order |= {} if stdin is None else {"stdin": str(stdin)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._last = RunningCommand(
            int(self._process.stdout.readline()), told, self._process.stdout
        )
        return self._last

    def run(self, words, *, die=None) -> RunningCommand:
        """Run a command to its end, whichever."""
        running = self.start(words, die=die)
        running.wait()
        return running

    def _end_last(self) -> None:
        """What a failed test left running is killed."""
        if self._last is not None and self._last.code is None:
            os.kill(self._last.pid, signal.SIGKILL)
            self._last.wait()

    def close(self) -> None:
        """End it."""
        self._end_last()
        self._process.stdin.close()
        self._process.wait(timeout=60)


class RunningCommand:
    """A command in a process of its own."""

    def __init__(self, pid: int, told: Path, answers) -> None:
        self.pid, self._told, self._answers = pid, told, answers
        self.code: int | None = None

    @property
    def events(self) -> list[dict]:
        """What it told so far."""
        text = self._told.read_text(encoding="utf-8") if self._told.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    @property
    def errors(self) -> str:
        """What it said on stderr."""
        return Path(f"{self._told}.err").read_text(encoding="utf-8")

    def until(self, condition) -> None:
        """Wait until its events fulfil a condition."""
        end = time.monotonic() + 60
        while not condition(self.events):
            assert time.monotonic() < end, self.errors
            time.sleep(0.01)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        if self.code is None:
            self.code = int(self._answers.readline())
        return self.code


@pytest.fixture(scope="session")
def forker(tmp_path_factory):
    """What starts processes."""
    forker = Forker(tmp_path_factory.mktemp("told"))
    yield forker
    forker.close()


@pytest.fixture(scope="session")
def unbroken(begin, forker, tmp_path_factory) -> Path:
    """A run that was never stopped; not to be changed."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    done = forker.run(begin(out, "--json"))
    assert done.code == 0, done.errors
    return out


@pytest.fixture(scope="session")
def same_runs():
    """Whether two runs wrote the same tables, but for the seconds, and the same weights and
    optimiser, bit for bit.
    """

    def same(one: Path, other: Path, *, pretrained: bool = False) -> bool:
        for name in ("metrics", "validation", "loads", "skipped"):
            tables = [
                (run / f"{name}.csv").read_text(encoding="utf-8").splitlines()
                for run in (one, other)
            ]
            if name in ("metrics", "validation"):  # seconds are the last column
                tables = [[line.rpartition(",")[0] for line in table] for table in tables]
            assert tables[0] == tables[1], name
        for name in ("best", "weights" if pretrained else "last", "training"):
            found, wanted = (load_file(run / f"{name}.safetensors") for run in (one, other))
            assert found.keys() == wanted.keys()
            differ = [
                key
                for key in found
                if not key.startswith("random") and not torch.equal(found[key], wanted[key])
            ]
            assert not differ, (name, differ[:3])
        return True

    return same
