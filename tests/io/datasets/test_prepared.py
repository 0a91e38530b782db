"""A prepared folder gives back what was written, or nothing; whatever happens beside it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest

from napari_shmoareg.datasets import prepared as prepared_module
from napari_shmoareg.datasets.prepared import Entry, PreparedFolder, file_checksum, make_key
from napari_shmoareg.errors import InputError

KEY = make_key(image="123", size=24)


@pytest.fixture
def folder(prepared) -> PreparedFolder:
    return PreparedFolder(prepared)


def fill(folder: PreparedFolder, name: str, key: str = KEY, size: int = 1000) -> None:
    values = np.arange(size, dtype=np.float32)
    arrays = {"values": values, "empty": np.zeros((0, 3)), "number": np.array(7)}
    folder.write(name, key, Entry(arrays, {"name": name, "list": [1]}))


def test_what_was_written_comes_back_to_another_process_too(folder):
    fill(folder, "a")
    entry = PreparedFolder(folder.path).read("a", KEY)
    assert np.array_equal(entry.arrays["values"], np.arange(1000)) and entry.arrays["number"] == 7
    assert entry.arrays["empty"].shape == (0, 3)
    assert entry.facts == {"name": "a", "list": [1]}
    assert folder.read("b", KEY) is None


def test_every_part_of_a_key_counts():
    parts = ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": 1, "b": None})
    assert len({make_key(**each) for each in parts}) == len(parts)
    assert make_key(a=1, b=2) == make_key(b=2, a=1)


def test_a_scan_of_another_key_is_not_read_and_takes_the_same_file(folder):
    fill(folder, "a")
    assert folder.read("a", make_key(image="124", size=24)) is None
    fill(folder, "a", "changed", size=5)
    assert len(folder.read("a", "changed").arrays["values"]) == 5
    assert folder.read("a", KEY) is None and len(list(folder.path.iterdir())) == 1


def test_names_of_any_characters_have_files_of_their_own(folder):
    names = ("a/b", "a_b", "../a", "x" * 400, "x" * 401, "脳一", "脳二", ".hidden")
    for name in names:
        fill(folder, name)
    assert not folder.last_error
    assert [folder.read(name, KEY).facts["name"] for name in names] == list(names)
    assert len(list(folder.path.iterdir())) == len(names)
    assert not any(entry.name.startswith(".") for entry in folder.path.iterdir())


def damaged(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[-2000] ^= 1
    return {
        "empty": b"",
        "cut": data[:-7],
        "flipped": bytes(flipped),
        "another kind": data.replace(b'"F32"', b'"I32"'),
        "noise": b"\xff" * 300,
        "text": b"no entry at all",
    }


@pytest.mark.parametrize("damage", list(damaged(bytes(2000))))
def test_a_damaged_file_is_known_and_replaced(folder, damage):
    fill(folder, "a")
    (path,) = folder.path.iterdir()
    whole = path.read_bytes()
    assert damaged(whole)[damage] != whole
    path.write_bytes(damaged(whole)[damage])
    assert folder.read("a", KEY) is None
    fill(folder, "a")
    assert folder.read("a", KEY).facts["name"] == "a" and len(list(folder.path.iterdir())) == 1


def test_a_file_under_the_name_of_another_of_its_key_is_damaged_too(folder):
    fill(folder, "a", make_key(image="a"))
    folder.file("a").rename(folder.file("b"))
    assert folder.read("b", make_key(image="b")) is None


def test_a_full_disk_costs_nothing_but_the_file(folder, monkeypatch):
    fill(folder, "a")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    fill(folder, "b")
    assert folder.read("b", KEY) is None and folder.read("a", KEY) is not None
    assert "disk is full" in folder.last_error and len(list(folder.path.iterdir())) == 1


def test_the_last_of_the_disk_is_left_for_the_run(folder, monkeypatch):
    usage = namedtuple("Usage", "free")
    least = prepared_module.RESERVE + 5000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(least))
    fill(folder, "small")
    assert folder.read("small", KEY) is not None and not folder.last_error
    fill(folder, "large", size=10_000)
    assert folder.read("large", KEY) is None and "nearly full" in folder.last_error


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_files(tmp_path):
    (tmp_path / "file").touch()
    folder = PreparedFolder(tmp_path / "file" / "prepared")
    fill(folder, "a")
    assert folder.read("a", KEY) is None and folder.last_error


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = PreparedFolder(None)
    fill(folder, "a")
    assert folder.read("a", KEY) is None and not folder.last_error
    assert not list(tmp_path.iterdir())


def test_a_fingerprint_is_of_the_bytes_and_follows_every_change(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    os.utime(one, ns=(1, 1))
    before = file_checksum(one)
    assert before == file_checksum(two)
    one.write_bytes(b"abd")
    os.utime(one, ns=(1, 1))
    assert file_checksum(one) != before
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"x")
    whole = file_checksum(folder)
    (folder / "2.dcm").write_bytes(b"y")
    assert file_checksum(folder) != whole != file_checksum(f"{folder}#1.2")
    with pytest.raises(InputError, match="cannot be read"):
        file_checksum(tmp_path / "gone")


def test_what_a_killed_process_left_half_written_goes(folder):
    fill(folder, "a")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = folder.file("a").name
    left = folder.path / f".{name}.partial-{gone.pid}.safetensors"
    other = folder.path / f".{name}.partial-{os.getppid()}.safetensors"
    for path in (left, other):
        path.write_bytes(b"half")
    fill(folder, "a")
    assert not left.exists() and other.exists()  # its process may still be writing


CROWD = """
import sys
from pathlib import Path
import numpy as np
from napari_shmoareg.datasets.prepared import Entry, PreparedFolder
folder = PreparedFolder(Path(sys.argv[1]))
made = 0
for turn in range(400):
    number = (turn * int(sys.argv[2])) % 23
    name, key = f"scan{number % 7}", f"of {number}"
    entry = folder.read(name, key)
    if entry is None:
        values = np.full(1500, number, np.float32)
        folder.write(name, key, Entry({"v": values}, {"number": number}))
        made += 1
    else:
        assert entry.facts["number"] == number and (entry.arrays["v"] == number).all()
assert not folder.last_error, folder.last_error
print(made)
"""


@pytest.mark.slow
def test_two_processes_replace_the_files_of_each_other(tmp_path):
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [
        subprocess.Popen([sys.executable, "-c", CROWD, str(tmp_path), step], **piped)
        for step in ("5", "7")
    ]
    told = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert all(int(out) > 23 for out, _ in told)  # each made some again that the other replaced
    assert len(list(tmp_path.iterdir())) == 7
