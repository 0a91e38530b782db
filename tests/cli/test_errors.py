"""How failures are said, and with which exit code a command ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from napari_shmoareg.cli.console import explain
from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.geometry import Grid, Volume


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "napari_shmoareg", *map(str, arguments)]


def test_what_a_user_can_mend_is_said_as_it_is():
    assert explain(InputError("The image is flat.")) == "Error: The image is flat."
    assert explain(TooLargeError("Too large.")) == "Error: Too large."


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "denied", "/a/b"), "Permission denied ('/a/b')"),
        (FileNotFoundError(errno.ENOENT, "gone", "x.nii"), "No such file or directory ('x.nii')"),
        (OSError(errno.ENOSPC, "full"), "No space left on device. Free some space"),
        (MemoryError(), "ran out of memory. Give a smaller --size"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "ran out of memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "--device cpu"),
        (KeyError("weights"), "This is a bug"),
        (ValueError(""), "ValueError: no message"),
        (RuntimeError("first\nsecond"), "(RuntimeError: first)"),
    ],
)
def test_every_error_is_one_plain_paragraph(error, says):
    text = explain(error)
    assert says in text and "\n" not in text and text.startswith("Error: ")


def test_a_bug_is_called_one_and_exits_with_1(register, monkeypatch):
    def broken(*arguments, **more):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("napari_shmoareg.io.registration_folder.write_registration", broken)
    result, _ = register("--affine none")
    assert result.exit_code == 1
    assert "ZeroDivisionError: oh" in result.stderr and "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    shown, _ = register("--affine none --debug")
    assert shown.exit_code == 1
    assert "Traceback" in shown.stderr and "in broken" in shown.stderr


def test_debug_shows_the_traceback_of_an_input_error(files, register):
    assert "Traceback" in register("--debug", moving=files.folder / "gone.nii")[0].stderr


@pytest.mark.slow
def test_exit_codes_of_the_real_command(files):
    assert subprocess.run(command("--version"), capture_output=True).returncode == 0
    failed = subprocess.run(
        command("register", files.folder / "gone.nii", files.fixed, "--out", files.folder / "out"),
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1 and "Error: " in failed.stderr and failed.stdout == ""
    misused = subprocess.run(command("register", files.moving), capture_output=True, text=True)
    assert misused.returncode == 2 and misused.stderr.startswith("Error: Missing")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_says_so_and_leaves_nothing(ending, files, weights):
    out = files.folder / "results" / "out"
    # seconds of work
    ramp = np.add.outer(np.arange(400, dtype=np.uint8), np.zeros((400, 400), np.uint8))
    large = files.write(Volume(ramp, Grid(ramp.shape, np.diag([0.5, 0.5, 0.5, 1.0]))), "large.nii")
    arguments = ("register", large, files.fixed, "--weights", weights, "--out", out)
    process = subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    seen = ""
    while "reading" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    time.sleep(0.5)
    process.send_signal(ending)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    *stages, last = stderr.splitlines()
    assert last == "Cancelled; nothing was written." and stdout == ""
    assert all(stage.endswith("...") for stage in stages)
    assert not out.parent.exists()


def test_the_package_runs_as_a_module_without_loading_torch_for_help():
    code = (
        "import sys, runpy; sys.argv = ['shmoareg', 'register', '--help']\ntry:"
        " runpy.run_module('napari_shmoareg', run_name='__main__')\nexcept SystemExit as end:"
        " print(end.code, [m for m in ('torch', 'nibabel', 'SimpleITK') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 []"


STOPPED = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as at a terminal, also where the tests run under nohup
from napari_shmoareg.cli import main
from napari_shmoareg.io import registration_folder
registration_folder.measure = lambda *_: time.sleep(600)  # within the folder that is being built
sys.argv = ["shmoareg", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_or_a_kill_leaves_no_hidden_folder(ending, files, weights):
    folder = files.folder / "results"
    folder.mkdir()
    words = [sys.executable, "-c", STOPPED, "register", files.moving, files.fixed]
    words += ["--weights", weights, "--out", folder / "out"]
    words += "--affine none --size 16 --quiet".split()
    process = subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(folder.glob(".out.partial-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(ending)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and said == "Cancelled; nothing was written.\n"
    assert list(folder.iterdir()) == []


def test_a_bug_names_what_was_read_and_else_what_the_command_was_given(
    files, shmoareg, monkeypatch
):
    def broken(path, *arguments):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("napari_shmoareg.io.nifti.load", broken)
    options = ("--reference", files.fixed, "--out", files.folder / "out.nii")
    said = shmoareg("apply", files.moving, files.moving, *options).stderr
    assert f"while reading {files.fixed}" in said or f"while reading {files.moving}" in said
    assert "(ZeroDivisionError: oh)" in said
    error = ZeroDivisionError("oh")
    assert "inside shmoareg, with a.nii (ZeroDivisionError: oh)" in explain(error, ["a.nii"])
    error.add_note("while reading b.nii")
    text = explain(error, ["a.nii"])
    assert "inside shmoareg, while reading b.nii (ZeroDivisionError: oh)" in text


def test_memory_that_runs_out_while_a_file_is_read_is_not_blamed_on_the_size_of_the_network():
    error = MemoryError()
    error.add_note("while reading huge.safetensors")
    assert "huge.safetensors" in explain(error) and "--size" not in explain(error)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["moving", "out"])
def test_a_name_that_is_not_utf_8_is_read_or_refused_before_the_work(
    where, files, weights, tmp_path
):
    odd = os.fsdecode(b"sc\xe4n")
    moving, out = tmp_path / f"{odd}.nii.gz", tmp_path / (odd if where == "out" else "out")
    os.rename(files.moving, moving)
    options = ("--weights", weights, "--out", out, "--affine", "none", "--size", "16")
    ended = subprocess.run(command("register", moving, files.fixed, *options), capture_output=True)
    if where == "out":
        assert ended.returncode == 1 and not out.exists()
        assert b"sc\\xe4n is not UTF-8" in ended.stderr
        assert b"Registered" not in ended.stdout and b"aligning" not in ended.stderr
        return
    assert ended.returncode == 0, ended.stderr
    assert b"sc\\xe4n onto fixed" in ended.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["pair"]["moving"]["name"] == r"sc\xe4n"
    assert (out / "figures" / "overview.png").is_file()


def test_a_name_as_long_as_the_disk_takes_is_written_and_a_longer_one_refused_at_once(
    files, register, shmoareg
):
    result, out = register("--affine none --size 16 --no-figures", out="n" * 255)
    assert result.exit_code == 0 and (out / "report.json").is_file()
    said, _ = register("--affine none --size 16 --no-figures", out="n" * 256)
    assert said.exit_code == 1 and "256 bytes; this disk allows 255" in said.stderr
    assert "aligning" not in said.stderr
    carried = files.folder / ("n" * 248 + ".nii.gz")
    words = (out / "transform.h5", files.moving, "--reference", files.fixed, "--out", carried)
    assert shmoareg("apply", *words).exit_code == 0 and carried.is_file()
    assert not list(files.folder.glob(".*"))


@pytest.mark.parametrize(
    "words", [("--out", "~nosuchuser/x"), ("--weights", "~nosuchuser/w.safetensors", "--out", "o")]
)
def test_the_home_of_nobody_is_refused_by_name(words, files, shmoareg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = shmoareg("register", files.moving, files.fixed, *words)
    assert result.exit_code == 1 and "~nosuchuser" in result.stderr and "bug" not in result.stderr
    assert not (tmp_path / "~nosuchuser").exists()
