"""Files appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from napari_shmoareg.geometry import InputError
from napari_shmoareg.io.atomic import ending, new_folder, stem, writing


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_nii_gz_is_one_ending_and_other_dots_belong_to_the_name():
    assert ending("a/sub.01.T1.nii.GZ") == ".nii.gz"
    assert stem("a/sub.01.T1.nii.GZ") == "sub.01.T1"
    assert (ending("x.h5"), stem("x.h5"), ending("plain"), stem("plain")) == (".h5", "x", "", "plain")


def test_a_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "out.nii.gz"
    with writing(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.name.endswith(".nii.gz") and temporary.name.startswith(".")
    assert path.read_bytes() == b"half"
    assert os.listdir(tmp_path) == ["out.nii.gz"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), writing(path) as temporary:
        temporary.write_text("new, cut sh")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_full_disk_says_so_and_how_much_is_needed(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match=r"disk is full.*needs about 23 MB.*Free some space"):
        with writing(tmp_path / "big.bin", size=23_000_000), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    with pytest.raises(InputError, match="disk is full"):
        with new_folder(tmp_path / "results"), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    assert os.listdir(tmp_path) == []


def test_another_error_of_the_body_passes_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a.txt"):
        (tmp_path / "no such file").read_bytes()


def test_a_missing_folder_a_folder_as_file_and_a_file_as_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"), writing(tmp_path / "missing" / "a.txt"):
        pass
    with pytest.raises(InputError, match="is a folder"), writing(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"), new_folder(tmp_path / "file"):
        pass
    with (
        pytest.raises(InputError, match=r"Cannot write.*place that you may write"),
        new_folder(tmp_path / "file" / "sub"),
    ):
        pass


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="Cannot write"), new_folder(tmp_path / "results"):
            pass
        with pytest.raises(InputError, match="Cannot write"), writing(tmp_path / "a.txt"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_place_without_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="Cannot write"), new_folder(tmp_path / "results"):
        pytest.fail("the work was begun")
    with pytest.raises(InputError, match="Cannot write"), writing(tmp_path / "a.txt"):
        pytest.fail("the work was begun")


def test_a_folder_is_not_there_before_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "results"
    with new_folder(target) as folder:
        (folder / "experts").mkdir()
        (folder / "experts" / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "experts" / "a.txt").read_text() == "a"
    assert os.listdir(target.parent) == ["results"]


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path):
    target = tmp_path / "results"
    target.mkdir()
    with new_folder(target) as folder:
        (folder / "a.txt").write_text("a")
    assert os.listdir(target) == ["a.txt"]
    with pytest.raises(InputError, match=r"not empty \(1 entries, such as 'a.txt'\)"), new_folder(target):
        pass
    assert os.listdir(target) == ["a.txt"]


def test_a_folder_that_cannot_be_replaced_is_filled_from_within(tmp_path, monkeypatch):
    target = tmp_path / "mounted"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda place: Path(place) == target)
    before = target.stat().st_ino
    with new_folder(target) as folder:
        assert folder.parent == target
        (folder / "a.txt").write_text("a")
    assert os.listdir(target) == ["a.txt"] and target.stat().st_ino == before


def test_the_working_folder_can_be_the_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(".") as folder:
        (folder / "a.txt").write_text("a")
    assert os.listdir() == ["a.txt"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "results") as folder:
        (folder / "a.txt").write_text("a")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_folder_filled_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="not empty"), new_folder(tmp_path / "results") as folder:
        (folder / "a.txt").write_text("ours")
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "b.txt").write_text("theirs")
    assert os.listdir(tmp_path / "results") == ["b.txt"]


def test_what_a_killed_run_left_is_cleaned_but_not_what_a_live_one_is_writing(tmp_path):
    dead, alive = dead_process(), os.getppid()
    for number in (dead, alive):
        (tmp_path / f".results.partial-{number}").mkdir()
        (tmp_path / f".results.partial-{number}" / "report.json").write_text("{}")
        (tmp_path / f".a.nii.gz.partial-{number}.nii.gz").write_text("half")
    with new_folder(tmp_path / "results"), writing(tmp_path / "a.nii.gz") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [
        f".a.nii.gz.partial-{alive}.nii.gz",
        f".results.partial-{alive}",
        "a.nii.gz",
        "results",
    ]


def test_a_run_killed_while_writing_leaves_no_finished_looking_folder(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from napari_shmoareg.io.atomic import new_folder\n"
        "with new_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'report.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "results")], cwd=root, check=False)
    assert ended.returncode != 0
    assert not (tmp_path / "results").exists()
    with new_folder(tmp_path / "results"):
        pass
    assert os.listdir(tmp_path) == ["results"]
