"""Files appear whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import atomic_write, check_new_folder, ending, new_folder, stem


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_nii_gz_is_one_ending_and_other_dots_belong_to_the_name():
    assert ending("a/sub.01.T1.nii.GZ") == ".nii.gz"
    assert stem("a/sub.01.T1.nii.GZ") == "sub.01.T1"
    assert (ending("x.h5"), stem("x.h5"), ending("plain"), stem("plain")) == (
        ".h5",
        "x",
        "",
        "plain",
    )


def test_a_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "out.nii.gz"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.name.endswith(".nii.gz") and temporary.name.startswith(".")
    assert path.read_bytes() == b"half"
    assert os.listdir(tmp_path) == ["out.nii.gz"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("new, cut sh", encoding="utf-8")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_full_disk_says_so_and_how_much_is_needed(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match=r"disk is full.*needs about 23 MB.*Free some space"):
        with (
            atomic_write(tmp_path / "big.bin", size=23_000_000),
            open("/dev/full", "wb", buffering=0) as full,
        ):
            full.write(b"x")
    with pytest.raises(InputError, match="disk is full"):
        with new_folder(tmp_path / "results"), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("free", "full"), [(5_000_000, True), (50_000_000, False)])
def test_an_error_without_a_number_is_a_full_disk_only_where_less_is_free_than_is_needed(
    tmp_path, monkeypatch, free, full
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with (
        pytest.raises(InputError if full else RuntimeError) as caught,
        new_folder(tmp_path / "results") as folder,
    ):
        with atomic_write(folder / "big.h5", size=23_000_000):
            raise RuntimeError("Exception thrown in a library")
    if full:
        assert (
            f"The disk is full: {tmp_path / 'results' / 'big.h5'} could not be written; 5 MB"
            in str(caught.value)
        )
        assert "partial" not in str(caught.value)


def test_another_error_of_the_body_passes_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "no such file").read_bytes()


def test_a_missing_folder_a_folder_as_file_and_a_file_as_folder_are_refused(tmp_path):
    with (
        pytest.raises(InputError, match="does not exist"),
        atomic_write(tmp_path / "missing" / "a.txt"),
    ):
        pass
    with pytest.raises(InputError, match="is a folder"), atomic_write(tmp_path):
        pass
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is a file"), new_folder(tmp_path / "file"):
        pass
    with (
        pytest.raises(InputError, match=r"Cannot write.*path that you may write"),
        new_folder(tmp_path / "file" / "sub"),
    ):
        pass


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="Cannot write"), new_folder(tmp_path / "results"):
            pass
        with pytest.raises(InputError, match="Cannot write"), atomic_write(tmp_path / "a.txt"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_place_without_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="Cannot write"), new_folder(tmp_path / "results"):
        pytest.fail("the work was begun")
    with pytest.raises(InputError, match="Cannot write"), atomic_write(tmp_path / "a.txt"):
        pytest.fail("the work was begun")


def test_a_folder_is_not_there_before_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "results"
    with new_folder(target) as folder:
        (folder / "experts").mkdir()
        (folder / "experts" / "a.txt").write_text("a", encoding="utf-8")
        assert not target.exists()
    assert (target / "experts" / "a.txt").read_text(encoding="utf-8") == "a"
    assert os.listdir(target.parent) == ["results"]


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path):
    target = tmp_path / "results"
    target.mkdir()
    with new_folder(target) as folder:
        (folder / "a.txt").write_text("a", encoding="utf-8")
    assert os.listdir(target) == ["a.txt"]
    with (
        pytest.raises(InputError, match=r"not empty \(1 entries, such as 'a.txt'\)"),
        new_folder(target),
    ):
        pass
    assert os.listdir(target) == ["a.txt"]


def test_a_folder_that_cannot_be_replaced_is_filled_from_within(tmp_path, monkeypatch):
    target = tmp_path / "mounted"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda place: Path(place) == target)
    before = target.stat().st_ino
    with new_folder(target) as folder:
        assert folder.parent == target
        (folder / "a.txt").write_text("a", encoding="utf-8")
    assert os.listdir(target) == ["a.txt"] and target.stat().st_ino == before


def test_the_report_comes_last_into_a_folder_that_is_filled_from_within(tmp_path, monkeypatch):
    names = [f"{n}.txt" for n in range(9)] + [
        "report.json",
        "summary.csv",
        "warped.nii.gz",
        "zebra",
    ]
    monkeypatch.chdir(tmp_path)
    moved, rename = [], Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, target: (moved.append(self.name), rename(self, target))[1]
    )
    with new_folder(tmp_path) as folder:
        for name in names:
            (folder / name).write_text("whole", encoding="utf-8")
    assert sorted(moved) == sorted(names) == sorted(os.listdir(tmp_path))
    assert moved[-1] == "report.json"


def leave_behind(folder: Path, process: int) -> Path:
    """What a run that filled `folder` from within leaves when it is killed."""
    left = folder / f".{folder.name}.partial-{process}"
    left.mkdir(parents=True)
    (left / "report.json").write_text("{}", encoding="utf-8")
    return left


@pytest.mark.parametrize("inside", [True, False])
def test_what_a_killed_run_left_within_a_folder_does_not_block_the_next(
    tmp_path, monkeypatch, inside
):
    target = tmp_path / "results"
    left = leave_behind(target, dead_process())
    if inside:
        monkeypatch.chdir(target)
    check_new_folder(target)
    assert left.exists()  # a question changes nothing
    with new_folder(target) as folder:
        (folder / "a.txt").write_text("a", encoding="utf-8")
    assert os.listdir(target) == ["a.txt"]
    assert os.listdir(tmp_path) == ["results"]


def test_a_folder_that_a_live_run_is_filling_from_within_is_not_taken(tmp_path):
    left = leave_behind(tmp_path / "results", os.getppid())
    with pytest.raises(InputError, match="not empty"):
        check_new_folder(tmp_path / "results")
    with pytest.raises(InputError, match="not empty"), new_folder(tmp_path / "results"):
        pytest.fail("the work was begun")
    assert left.exists()


def test_the_working_folder_can_be_the_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(".") as folder:
        (folder / "a.txt").write_text("a", encoding="utf-8")
    assert os.listdir() == ["a.txt"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "results") as folder:
        (folder / "a.txt").write_text("a", encoding="utf-8")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_folder_filled_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="not empty"), new_folder(tmp_path / "results") as folder:
        (folder / "a.txt").write_text("ours", encoding="utf-8")
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "b.txt").write_text("theirs", encoding="utf-8")
    assert os.listdir(tmp_path / "results") == ["b.txt"]


def test_what_a_killed_run_left_is_cleaned_but_not_what_a_live_one_is_writing(tmp_path):
    dead, alive = dead_process(), os.getppid()
    for number in (dead, alive):
        (tmp_path / f".results.partial-{number}").mkdir()
        (tmp_path / f".results.partial-{number}" / "report.json").write_text("{}", encoding="utf-8")
        (tmp_path / f".a.nii.gz.partial-{number}.nii.gz").write_text("half", encoding="utf-8")
    with new_folder(tmp_path / "results"), atomic_write(tmp_path / "a.nii.gz") as temporary:
        temporary.write_text("whole", encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == [
        f".a.nii.gz.partial-{alive}.nii.gz",
        f".results.partial-{alive}",
        "a.nii.gz",
        "results",
    ]


def test_a_run_killed_while_writing_leaves_no_finished_looking_folder(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from napari_shmoareg.io.files import new_folder\n"
        "with new_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'report.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "results")], cwd=root, check=False
    )
    assert ended.returncode != 0
    assert not (tmp_path / "results").exists()
    with new_folder(tmp_path / "results"):
        pass
    assert os.listdir(tmp_path) == ["results"]
