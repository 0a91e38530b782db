"""A DICOM series folder as ITK writes it, slice by slice and oblique."""

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


def write_series(folder, *, count=NZ, uid=UID):
    """Slices of a known volume; returns the whole volume (i, j, k)."""
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(5).integers(-200, 900, (NX, NY, NZ)).astype(np.int16)
    right, down, _ = frame()
    for n in range(count):
        image = sitk.GetImageFromArray(np.ascontiguousarray(values[:, :, n].T)[None])
        image.SetSpacing((*SPACING, STEP))
        tags = {
            "0008|0060": "CT",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000e": uid,
            "0008|103e": f"series {uid[-1]}",
            "0020|0013": str(n + 1),
            "0008|0018": f"{uid}.{n + 1}",
            "0028|1052": "0",
            "0028|1053": "1",
            "0020|0032": "\\".join(f"{v:.6f}" for v in lps_of((0, 0, n))),
            "0020|0037": "\\".join(f"{v:.8f}" for v in (*right, *down)),
        }
        for tag, text in tags.items():
            image.SetMetaData(tag, text)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{uid[-1]}_{(n * 5) % NZ:02d}.dcm"))
        writer.Execute(image)
    return values


def lps_of(index):
    """Place of a voxel in mm, by the tags."""
    return np.array([-30.0, 12.0, 40.0]) + (index * np.array([*SPACING, STEP])) @ np.array(frame())


def test_slices_are_stacked_by_their_place_whatever_their_file_names(tmp_path):
    values = write_series(tmp_path / "scan")
    volume = read_image(tmp_path / "scan")
    np.testing.assert_array_equal(volume.values, values)
    for index in [(0, 0, 0), (13, 10, 7), (4, 2, 6)]:
        place = volume.grid.to_world(index) * [-1, -1, 1]
        np.testing.assert_allclose(place, lps_of(index), atol=1e-4)
    assert volume.name == "scan"


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    values = write_series(tmp_path / "scan")
    write_series(tmp_path / "scan", count=3, uid=UID[:-1] + "8")
    with pytest.raises(InputError, match=r"2 DICOM series: .*8 files, series 7.*FOLDER#SERIES_UID"):
        read_image(tmp_path / "scan")
    np.testing.assert_array_equal(read_image(f"{tmp_path / 'scan'}#{UID}").values, values)
    with pytest.raises(InputError, match=r"no DICOM series 1\.2\.3; it contains"):
        read_image(f"{tmp_path / 'scan'}#1.2.3")


def test_a_hash_after_a_file_is_refused(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"x")
    with pytest.raises(InputError, match="selects a series of a DICOM folder"):
        read_image(f"{tmp_path / 'a.nii'}#1.2")
