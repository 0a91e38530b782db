"""A DICOM series folder, made here slice by slice."""

import numpy as np
import pytest
import SimpleITK as sitk

from napari_shmoareg.errors import InputError
from napari_shmoareg.io import read_image

NX, NY, NZ = 14, 11, 8
SPACING = (1.5, 0.9)
STEP = 3.0
UID = "1.2.826.0.1.3680043.2.1125.7"


def frame():
    """Two in-plane directions and the normal (LPS), oblique."""
    a, b = np.deg2rad([15.0, -10.0])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return (turn @ tilt).T


def write_series(
    folder, *, numbers=range(NZ), uid=UID, drift=0.0, offset=0, positions=True, start=0.0
):
    """Slices of a known volume; returns the whole volume (i, j, k)."""
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(5).integers(-200, 900, (NX, NY, NZ)).astype(np.int16)
    right, down, normal = frame()
    for n in numbers:
        image = sitk.GetImageFromArray(np.ascontiguousarray(values[:, :, n].T)[None])
        image.SetSpacing((*SPACING, STEP))
        place = np.array([-30.0, 12.0, 40.0]) + (start + n * STEP) * normal + n * drift * down
        tags = {
            "0008|0060": "CT",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000e": uid,
            "0008|103e": f"series {uid[-1]}",
            "0020|0013": str(n + 1),
            "0008|0018": f"{uid}.{n + 1 + offset}",
            "0028|1052": "0",
            "0028|1053": "1",
        }
        if positions:
            tags["0020|0032"] = "\\".join(f"{v:.6f}" for v in place)
            tags["0020|0037"] = "\\".join(f"{v:.8f}" for v in (*right, *down))
        for tag, text in tags.items():
            image.SetMetaData(tag, text)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{uid[-1]}_{(n * 5) % NZ:02d}_{offset}.dcm"))
        writer.Execute(image)
    return values


def world_of(index):
    """RAS mm of a voxel, from the tags."""
    right, down, normal = frame()
    i, j, k = index
    lps = (
        np.array([-30.0, 12.0, 40.0])
        + i * SPACING[0] * right
        + j * SPACING[1] * down
        + k * STEP * normal
    )
    return lps * [-1, -1, 1]


def test_slices_are_stacked_by_their_place_whatever_their_file_names(tmp_path):
    values = write_series(tmp_path / "scan")
    volume = read_image(tmp_path / "scan")
    np.testing.assert_array_equal(volume.values, values)
    for index in [(0, 0, 0), (13, 10, 7), (4, 2, 6)]:
        np.testing.assert_allclose(volume.grid.to_world(index), world_of(index), atol=1e-4)
    assert volume.name == "scan"


def test_a_missing_slice_is_told_and_where(tmp_path):
    write_series(tmp_path / "scan", numbers=[0, 1, 2, 4, 5, 6, 7])
    with pytest.raises(
        InputError, match=r"6\.000 mm between .* 3\.000 mm is usual; about 1 of 8 slices"
    ):
        read_image(tmp_path / "scan")


def test_two_slices_at_one_place_are_told(tmp_path):
    write_series(tmp_path / "scan")
    write_series(tmp_path / "scan", numbers=[3], offset=100)
    with pytest.raises(InputError, match="two slices at the same position"):
        read_image(tmp_path / "scan")


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    values = write_series(tmp_path / "scan")
    write_series(tmp_path / "scan", numbers=range(3), uid=UID[:-1] + "8")
    with pytest.raises(InputError, match=r"2 DICOM series: .*8 files, series 7.*FOLDER#SERIES_UID"):
        read_image(tmp_path / "scan")
    np.testing.assert_array_equal(read_image(f"{tmp_path / 'scan'}#{UID}").values, values)
    with pytest.raises(InputError, match=r"no DICOM series 1\.2\.3; it contains"):
        read_image(f"{tmp_path / 'scan'}#1.2.3")


def test_a_tilted_gantry_gives_a_sheared_grid_not_a_straightened_one(tmp_path):
    write_series(tmp_path / "scan", drift=0.8)
    grid = read_image(tmp_path / "scan").grid
    _, down, _ = frame()
    np.testing.assert_allclose(
        grid.to_world((2, 3, 7)), world_of((2, 3, 7)) + 7 * 0.8 * down * [-1, -1, 1], atol=1e-4
    )


def test_pictures_without_a_place_are_refused(tmp_path):
    write_series(tmp_path / "scan", numbers=[0, 1], positions=False)
    with pytest.raises(InputError, match="DICOM"):
        read_image(tmp_path / "scan")


def test_a_slice_cut_short_is_named(tmp_path):
    write_series(tmp_path / "scan")
    last = tmp_path / "scan" / f"7_{((NZ - 1) * 5) % NZ:02d}_0.dcm"  # no gap would show without it
    last.write_bytes(last.read_bytes()[:-60])
    with pytest.raises(InputError, match=rf"{last.name} .*cut short"):
        read_image(tmp_path / "scan")


def test_what_is_no_slice_may_lie_beside_the_slices(tmp_path):
    values = write_series(tmp_path / "scan")
    (tmp_path / "scan" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    (tmp_path / "scan" / "notes.txt").write_text("axial", encoding="utf-8")
    (tmp_path / "scan" / "more").mkdir()
    np.testing.assert_array_equal(read_image(tmp_path / "scan").values, values)


def test_a_hash_after_a_file_is_refused(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"x")
    with pytest.raises(InputError, match="selects a series of a DICOM folder"):
        read_image(f"{tmp_path / 'a.nii'}#1.2")
