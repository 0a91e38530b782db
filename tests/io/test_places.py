"""Places for results are refused before any work is done."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.files import check_new_file, check_new_folder, display_path


def test_a_new_file_in_an_existing_folder_is_fine_and_nothing_is_left(tmp_path):
    check_new_file(tmp_path / "new.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_needs_consent_and_an_input_is_never_replaced(tmp_path):
    path = tmp_path / "old.nii"
    path.touch()
    with pytest.raises(InputError, match=r"exists.*overwrite=True"):
        check_new_file(path)
    check_new_file(path, overwrite=True)
    link = tmp_path / "link.nii"
    link.symlink_to(path)
    with pytest.raises(InputError, match="one of the inputs"):
        check_new_file(link, overwrite=True, inputs=[path])


@pytest.mark.parametrize(
    ("place", "says"), [("gone/a.nii", "does not exist"), (".", "is a folder")]
)
def test_a_file_cannot_stand_there(place, says, tmp_path):
    with pytest.raises(InputError, match=says):
        check_new_file(tmp_path / place)


def test_new_empty_and_nested_folders_are_fine_and_none_is_made(tmp_path):
    for place in (tmp_path, tmp_path / "new", tmp_path / "new" / "deep" / "er"):
        check_new_folder(place)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_or_a_file_is_refused(tmp_path):
    (tmp_path / ".hidden").touch()
    with pytest.raises(InputError, match=r"not empty \(1 entries, such as '\.hidden'\)"):
        check_new_folder(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        check_new_folder(tmp_path / ".hidden")
    with pytest.raises(InputError, match="is a file"):
        check_new_folder(tmp_path / ".hidden" / "below")


def test_a_place_where_even_the_administrator_cannot_write_is_refused():
    with pytest.raises(InputError, match="Cannot write into /proc"):
        check_new_folder("/proc/results")


def test_a_half_written_place_is_shown_as_the_place_it_will_be():
    assert display_path("/a/.out.partial-12/experts/x.nii.gz") == Path("/a/out/experts/x.nii.gz")
    assert display_path("/a/.x.nii.gz.partial-12.nii.gz") == Path("/a/x.nii.gz")
    # filled from within
    assert display_path("/a/out/.out.partial-12/.t.h5.partial-12.h5") == Path("/a/out/t.h5")
    assert display_path("/a/partial-12/x") == Path("/a/partial-12/x")


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "Free some space"), (errno.EACCES, "Choose a path that you may write to")],
)
def test_why_a_place_cannot_be_written_decides_what_helps(tmp_path, monkeypatch, code, hint):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=hint):
        check_new_file(tmp_path / "a.nii")
