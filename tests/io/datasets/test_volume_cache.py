"""The cache gives back what was put in, or nothing; whatever happens beside it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from napari_shmoareg.datasets import VolumeCache
from napari_shmoareg.datasets import cache as cache_module
from napari_shmoareg.errors import InputError


def fill(cache: VolumeCache, name: str, size: int = 1000) -> str:
    key = cache.key(name=name)
    cache.put(
        key,
        {"values": np.arange(size, dtype=np.float32), "empty": np.zeros((0, 3))},
        {"name": name, "list": [1]},
    )
    return key


def age(cache: VolumeCache, key: str, seconds: float) -> None:
    path = cache.folder / f"{key}.safetensors"
    os.utime(path, (time.time() - seconds,) * 2)


def test_what_was_put_comes_back_to_another_process_too(cache):
    key = fill(cache, "a")
    entry = VolumeCache(cache.folder).get(key)
    assert np.array_equal(entry.arrays["values"], np.arange(1000)) and entry.arrays[
        "empty"
    ].shape == (0, 3)
    assert entry.facts == {"name": "a", "list": [1]}
    assert cache.get(cache.key(name="b")) is None


def test_every_part_of_a_key_counts():
    keys = [
        VolumeCache.key(**parts)
        for parts in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": 1, "b": None})
    ]
    assert len(set(keys)) == len(keys)
    assert VolumeCache.key(a=1, b=2) == VolumeCache.key(b=2, a=1)


def damaged(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[-2000] ^= 1
    return {
        "empty": b"",
        "cut": data[:-7],
        "flipped": bytes(flipped),
        "noise": b"\xff" * 300,
        "text": b"no entry at all",
    }


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "noise", "text"])
def test_a_damaged_entry_is_known_and_removed(cache, damage):
    key = fill(cache, "a")
    path = cache.folder / f"{key}.safetensors"
    path.write_bytes(damaged(path.read_bytes())[damage])
    assert cache.get(key) is None and not path.exists()
    fill(cache, "a")
    assert cache.get(key).facts["name"] == "a"


def test_an_entry_under_the_name_of_another_is_not_taken_for_it(cache):
    key, other = fill(cache, "a"), cache.key(name="b")
    (cache.folder / f"{key}.safetensors").rename(cache.folder / f"{other}.safetensors")
    assert cache.get(other) is None


def test_the_least_recently_used_goes_first(tmp_path):
    cache = VolumeCache(tmp_path, limit_bytes=14_000)  # three entries of some 4.3 kB
    keys = [fill(cache, name) for name in "abc"]
    for number, key in enumerate(keys):
        age(cache, key, 100 - number)
    assert cache.get(keys[0]) is not None  # used: b is the oldest now
    last = fill(cache, "d")
    assert cache.bytes <= 14_000
    assert [cache.get(key) is not None for key in (*keys, last)] == [True, False, True, True]


def test_what_is_larger_than_the_cache_is_not_kept_and_said(tmp_path):
    cache = VolumeCache(tmp_path, limit_bytes=14_000)
    key = fill(cache, "small")
    assert cache.get(fill(cache, "large", 10_000)) is None
    assert cache.get(key) is not None and "14000 bytes" in cache.last_error


def test_a_full_disk_costs_nothing_but_the_entry(cache, monkeypatch):
    first = fill(cache, "a")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    second = fill(cache, "b")
    assert cache.get(second) is None and cache.get(first) is not None
    assert "disk is full" in cache.last_error and len(list(cache.folder.iterdir())) == 1


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_entries(tmp_path):
    (tmp_path / "file").touch()
    cache = VolumeCache(tmp_path / "file" / "cache")
    assert cache.get(fill(cache, "a")) is None and cache.last_error


def test_the_folder_and_the_limit_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("SHMOAREG_CACHE", str(tmp_path / "mine"))
    assert VolumeCache().folder == tmp_path / "mine"
    assert 0 < VolumeCache().limit_bytes <= 20 * 2**30
    monkeypatch.delenv("SHMOAREG_CACHE")
    assert VolumeCache().folder.name == "volumes" and "shmoareg" in str(VolumeCache().folder)


def test_a_fingerprint_is_of_the_bytes_and_follows_every_change(cache, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    before = cache.checksum(one)
    assert before == cache.checksum(two)
    one.write_bytes(b"abd")
    os.utime(one, ns=(1, 1))
    assert cache.checksum(one) != before
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"x")
    whole = cache.checksum(folder)
    (folder / "2.dcm").write_bytes(b"y")
    assert cache.checksum(folder) != whole != cache.checksum(f"{folder}#1.2")
    with pytest.raises(InputError, match="cannot be read"):
        cache.checksum(tmp_path / "gone")


def test_a_file_is_hashed_once_while_it_does_not_change(cache, tmp_path, monkeypatch):
    path = tmp_path / "one"
    path.write_bytes(b"abc")
    before = cache.checksum(path)
    monkeypatch.setattr(cache_module.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert cache.checksum(path) == before


def test_what_a_killed_process_left_half_written_goes(cache):
    fill(cache, "a")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = cache.folder / f".k.safetensors.partial-{gone.pid}.safetensors"
    left.write_bytes(b"half")
    fill(cache, "b")
    assert left.exists()  # a process on another machine may be writing it
    os.utime(left, (time.time() - 7200,) * 2)
    fill(cache, "c")
    assert not left.exists()


CROWD = """
import sys, numpy as np
from napari_shmoareg.datasets import VolumeCache
cache = VolumeCache(sys.argv[1], limit_bytes=60_000)
made = 0
for turn in range(400):
    number = (turn * int(sys.argv[2])) % 23
    key = cache.key(number=number)
    entry = cache.get(key)
    if entry is None:
        cache.put(key, {"v": np.full(1500, number, np.float32)}, {"number": number})
        made += 1
    else:
        assert entry.facts["number"] == number and (entry.arrays["v"] == number).all()
assert not cache.last_error, cache.last_error
print(made)
"""


@pytest.mark.slow
def test_two_processes_share_a_cache_that_is_too_small_for_them(tmp_path):
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [
        subprocess.Popen([sys.executable, "-c", CROWD, str(tmp_path), step], **piped)
        for step in ("5", "7")
    ]
    told = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert all(int(out) > 23 for out, _ in told)  # each made some again that the other evicted
    assert VolumeCache(tmp_path).bytes <= 60_000 + 7_000  # the last of both may stand at once
    assert not list(tmp_path.glob(".*"))
