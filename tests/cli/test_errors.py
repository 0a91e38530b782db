"""How failures are said, and with which exit code a command ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from napari_shmoareg.cli.errors import explain
from napari_shmoareg.geometry import InputError, TooLargeError


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
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "ran out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "--device cpu"),
        (KeyError("weights"), "This is a bug"),
        (ValueError(""), "ValueError: no message"),
        (RuntimeError("first\nsecond"), "(RuntimeError: first)"),
    ],
)
def test_every_error_is_one_plain_paragraph(error, says):
    text = explain(error)
    assert says in text and "\n" not in text and text.startswith("Error: ")


def test_a_bug_is_called_one_and_exits_with_1(files, weights, shmoareg, monkeypatch):
    def broken(*arguments, **more):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("napari_shmoareg.io.report.write_registration", broken)
    options = ("--weights", weights, "--out", files.folder / "out", "--affine", "none")
    arguments = ("register", files.moving, files.fixed, *options)
    result = shmoareg(*arguments)
    assert result.exit_code == 1
    assert "ZeroDivisionError: oh" in result.stderr and "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    shown = shmoareg(*arguments, "--debug")
    assert shown.exit_code == 1
    assert "Traceback" in shown.stderr and "in broken" in shown.stderr


def test_debug_shows_the_traceback_of_an_input_error(files, weights, shmoareg):
    arguments = ("register", files.folder / "gone.nii", files.fixed, "--weights", weights, "--out", files.folder / "o")
    assert "Traceback" in shmoareg(*arguments, "--debug").stderr


def test_a_warning_of_a_reader_is_one_line(files, weights, shmoareg, monkeypatch):
    import warnings

    from napari_shmoareg.io import images

    read = images.read_image

    def with_warning(*arguments, **more):
        warnings.warn("The file does not say how it lies.", UserWarning, stacklevel=2)
        return read(*arguments, **more)

    monkeypatch.setattr(images, "read_image", with_warning)
    result = shmoareg("apply", files.folder / "gone.h5", files.moving, "--reference", files.fixed, "--out", "a.nii")
    assert "Warning: The file does not say how it lies.\n" in result.stderr
    assert "UserWarning" not in result.stderr


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


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_says_so_and_leaves_nothing(ending, files, weights):
    out = files.folder / "results" / "out"
    held = files.folder / "held.nii"
    os.mkfifo(held)  # reading it waits, as slow storage does
    arguments = ("register", held, files.fixed, "--weights", weights, "--out", out)
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    seen = ""
    while "reading" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    time.sleep(0.5)
    process.send_signal(ending)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr == "Cancelled; nothing was written.\n" and stdout == ""
    assert not out.parent.exists()


def test_the_package_runs_as_a_module_without_loading_torch_for_help():
    code = (
        "import sys, runpy; sys.argv = ['shmoareg', 'register', '--help']\n"
        "try: runpy.run_module('napari_shmoareg', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, [m for m in ('torch', 'nibabel', 'SimpleITK') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 []"
