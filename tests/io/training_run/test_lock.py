"""Two processes never write one run; a process that is gone holds nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import psutil
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.training.run_folder import RunLock, read_holder

HERE = socket.gethostname()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def written(path, pid, host=HERE, started=None):
    started = psutil.Process(pid).create_time() if started is None else started
    path.write_text(
        json.dumps({"pid": pid, "host": host, "started": started, "doing": "learning"}),
        encoding="utf-8",
    )


def test_a_held_lock_is_refused_and_given_back(path):
    with RunLock(path) as held:
        held.set_status("paused")
        assert read_holder(path)["doing"] == "paused" and read_holder(path)["pid"] == os.getpid()
        with (
            pytest.raises(InputError, match=rf"process {os.getpid()} on .*runs stop"),
            RunLock(path),
        ):
            raise AssertionError
        assert path.exists()
    assert not path.exists() and read_holder(path) is None
    with RunLock(path):
        assert path.exists()
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("content", ["", '{"pid": 4', '{"pid": "x"}', "[]"])
def test_a_lock_that_was_half_written_holds_nothing(path, content):
    path.write_text(content, encoding="utf-8")
    with RunLock(path):
        assert read_holder(path)["pid"] == os.getpid()


def test_a_process_that_is_gone_holds_nothing(path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    written(path, child.pid)
    with pytest.raises(InputError, match=f"process {child.pid}"), RunLock(path):
        raise AssertionError
    child.kill()
    child.wait()
    with RunLock(path):
        assert read_holder(path)["pid"] == os.getpid()


def test_another_process_of_the_same_number_holds_nothing(path):
    written(path, os.getpid(), started=psutil.Process().create_time() - 100)
    assert read_holder(path) is None
    with RunLock(path):
        assert read_holder(path) is not None


def test_another_machine_holds_it_until_its_file_is_deleted(path):
    written(path, 1, host="elsewhere", started=0.0)
    with (
        pytest.raises(InputError, match=r"process 1 on elsewhere.*If it is gone, delete .*lock"),
        RunLock(path),
    ):
        raise AssertionError
    assert read_holder(path)["host"] == "elsewhere" and os.listdir(path.parent) == ["lock"]
    path.unlink()
    with RunLock(path):
        assert read_holder(path)["pid"] == os.getpid()


def test_a_process_that_is_killed_lets_go(path):
    code = (
        "import sys; from pathlib import Path; from napari_shmoareg.training.run_folder import RunLock\n"
        "with RunLock(Path(sys.argv[1])): print('mine', flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "mine\n"
    with pytest.raises(InputError, match=f"process {child.pid}"), RunLock(path):
        raise AssertionError
    child.kill()
    child.wait()
    with RunLock(path):
        assert read_holder(path)["pid"] == os.getpid()
    assert os.listdir(path.parent) == []


@pytest.mark.slow
def test_of_many_that_come_at_once_upon_a_stale_lock_one_gets_it(path):
    written(path, 2**22 + 1, started=0.0)
    code = (
        "import sys, time; from pathlib import Path; from napari_shmoareg.training.run_folder import"
        " RunLock\nfrom napari_shmoareg.geometry import InputError\nsys.stdout.write('ready\\n');"
        " sys.stdout.flush(); input()\ntry:\n    with RunLock(Path(sys.argv[1])):\n       "
        " print('mine', flush=True); input()\nexcept InputError: print('refused', flush=True)\n"
    )
    several = [
        subprocess.Popen(
            [sys.executable, "-c", code, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [child.stdout.readline() for child in several] == ["ready\n"] * 4
    for child in several:
        child.stdin.write("\n")
        child.stdin.flush()
    assert sorted(child.stdout.readline() for child in several) == ["mine\n"] + ["refused\n"] * 3
    for child in several:
        child.communicate("\n", timeout=20)
