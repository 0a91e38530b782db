"""One set of rules for every way in: classic series and multi-frame files, made here by pydicom."""

import os
import struct
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
)

from napari_shmoareg.errors import InputError
from napari_shmoareg.io import dicom, read_image
from napari_shmoareg.io.dicom_pixels import DicomWarning

CLASS = "1.2.840.10008.5.1.4.1.1."
CT, MR, PET, ENHANCED_MR = (CLASS + n for n in ("2", "4", "128", "4.1"))
CAPTURE, CAPTURES, XA, NM = (CLASS + n for n in ("7", "7.3", "12.1", "20"))
DOSE, SEG, STRUCTURES, REPORT = (CLASS + n for n in ("481.2", "66.4", "481.3", "88.11"))
SERIES = "1.2.826.0.1.3680043.8.498.1"
NX, NY, NZ = 9, 7, 6
SPACING, STEP = (1.5, 0.75), 2.5  # between columns, between rows; between slices
ORIGIN = np.array([-20.0, -30.0, 5.0])
ORDERS = {
    "stored": range(NZ),
    "reversed": range(NZ - 1, -1, -1),
    "mixed": [0, 2, 4, 1, 3, 5],
    "any": [3, 1, 4, 0, 5, 2],
}


def positions(drift=0.0, heights=None):
    """Positions of upright slices, shifted along y from slice to slice by a tilt."""
    heights = STEP * np.arange(NZ) if heights is None else np.asarray(heights, float)
    return [ORIGIN + np.array([0, drift * n, h]) for n, h in enumerate(heights)]


def volume(dtype=np.int16, low=0, high=900, seed=0):
    return np.random.default_rng(seed).integers(low, high, (NX, NY, NZ)).astype(dtype)


def new(sop, number=1, series=SERIES, syntax=ExplicitVRLittleEndian):
    meta, own = FileMetaDataset(), UID(f"{series}.{number}")
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop), own
    meta.TransferSyntaxUID = syntax
    order = {"is_implicit_VR": syntax.is_implicit_VR, "is_little_endian": syntax.is_little_endian}
    d = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128, **order)
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = UID(sop), own, series
    d.StudyInstanceUID, d.SeriesDescription, d.InstanceNumber = "1.2.3", "thorax", number
    return d


def put_pixels(d, array):
    """Pixels (..., rows, columns) as they are stored in this machine's byte order."""
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Rows, d.Columns = array.shape[-2:]
    d.BitsAllocated = d.BitsStored = 8 * array.dtype.itemsize
    d.HighBit, d.PixelRepresentation = d.BitsStored - 1, int(array.dtype.kind == "i")
    order = ">" if d.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    d.PixelData = np.ascontiguousarray(array, array.dtype.newbyteorder(order)).tobytes()
    if len(d.PixelData) % 2:
        d.PixelData += b"\0"
    d["PixelData"].VR = "OB" if d.BitsAllocated == 8 else "OW"


def classic(folder, values, places=None, *, edit=None, sop=CT, series=SERIES, prefix="s", **more):
    """A file for each slice; `edit` changes a dataset before it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, place in enumerate(places or positions()):
        d = new(sop, n + 1, series, **more)
        d.ImagePositionPatient, d.ImageOrientationPatient = list(place), [1, 0, 0, 0, 1, 0]
        d.PixelSpacing = [SPACING[1], SPACING[0]]
        put_pixels(d, values[:, :, n].T)
        if edit:
            edit(d, n)
        d.save_as(folder / f"{prefix}{n:03d}.dcm", enforce_file_format=True)
    return folder


def item(**elements):
    d = Dataset()
    for keyword, value in elements.items():
        setattr(d, keyword, value)
    return Sequence([d])


def multi(
    folder,
    values,
    places=None,
    *,
    edit=None,
    frame=None,
    sop=ENHANCED_MR,
    name="a.dcm",
    order=None,
    **more,
):
    """One multi-frame file; `frame` changes the functional groups of a frame, `edit` the whole."""
    folder.mkdir(parents=True, exist_ok=True)
    places = places or positions()
    order = range(len(places)) if order is None else order
    d = new(sop, 1, **more)
    put_pixels(d, np.stack([values[:, :, n].T for n in order]))
    d.NumberOfFrames = len(order)
    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[SPACING[1], SPACING[0]], SliceThickness=9)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for n in order:
        group = Dataset()
        group.PlanePositionSequence = item(ImagePositionPatient=list(places[n]))
        group.FrameContentSequence = item(
            StackID="1", TemporalPositionIndex=1, FrameAcquisitionNumber=1
        )
        if frame:
            frame(group, n)
        groups.append(group)
    d.PerFrameFunctionalGroupsSequence = Sequence(groups)
    if edit:
        edit(d)
    d.save_as(folder / name, enforce_file_format=True)
    return folder


def each_way(folder, values, places=None, order=None):
    """The same slices as a classic series and as a multi-frame file."""
    order = list(range(len(places or positions())) if order is None else order)
    placed = places or positions()
    yield classic(folder / "classic", values[:, :, order], [placed[n] for n in order])
    yield multi(folder / "multi", values, places, order=order)


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        read_image(path)
    text = str(caught.value)
    for word in words:
        assert word in text, text
    return text


# Order, gaps, tilt


@pytest.mark.parametrize("order", ORDERS)
def test_slices_and_frames_are_ordered_by_position_whatever_their_order_in_the_files(
    tmp_path, order
):
    values = volume()
    for path in each_way(tmp_path, values, order=ORDERS[order]):
        read = read_image(path)
        np.testing.assert_array_equal(read.values, values)
        np.testing.assert_allclose(read.grid.spacing, (*SPACING, STEP))
        index = np.array([3, 5, 4])
        lps = ORIGIN + index * [*SPACING, STEP]
        np.testing.assert_allclose(read.grid.to_world(index), lps * [-1, -1, 1], atol=1e-9)


def test_a_tilted_gantry_shears_the_grid_of_both(tmp_path):
    for path in each_way(tmp_path, volume(), positions(drift=0.8)):
        last = ORIGIN + np.array([0, 0.8, STEP]) * (NZ - 1)
        np.testing.assert_allclose(
            read_image(path).grid.to_world((0, 0, NZ - 1)), last * [-1, -1, 1], atol=1e-9
        )


def test_a_missing_slice_is_named_in_both(tmp_path):
    kept = [0, 1, 2, 4, 5]
    for path in each_way(tmp_path, volume(), order=kept):
        refused(
            path,
            "5.000 mm between 10.00 and 15.00 mm",
            "2.500 mm is usual",
            "1 of 6 slices are missing",
        )


def test_two_spacings_are_named_and_no_slice_is_called_missing(tmp_path):
    for n, heights in enumerate(
        ([0, 4, 8, 12, 19, 26], [0, 3, 6, 12, 18, 24], [0, 7, 14, 18, 22, 26])
    ):
        for path in each_way(tmp_path / str(n), volume(), positions(heights=heights)):
            first, last = (
                f"{step:.3f} mm from" for step in (heights[1], heights[-1] - heights[-2])
            )
            assert "missing" not in refused(path, "two spacings", first, last)


def test_a_slice_shifted_sideways_is_named(tmp_path):
    places = positions()
    places[3] = places[3] + [4.0, 0, 0]
    for path in each_way(tmp_path, volume(), places):
        refused(path, "not in line", "slice 4 of 6")


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path):
    for path in each_way(tmp_path, volume(), positions(heights=np.round(0.625 * np.arange(NZ), 1))):
        assert read_image(path).grid.spacing[2] == pytest.approx(0.62)


def test_one_slice_is_a_volume_only_with_a_thickness(tmp_path):
    def thick(d, n):
        d.SliceThickness = 4

    assert (
        read_image(classic(tmp_path / "a", volume(), positions()[:1], edit=thick)).grid.spacing[2]
        == 4
    )
    refused(classic(tmp_path / "b", volume(), positions()[:1]), "single slice without a thickness")


# Pixel spacing, positions


@pytest.mark.parametrize(
    "spacing", ["", "0\\0", "-1\\-1", "nan\\nan", "abc\\1", "1", "1\\1\\1", "1,5\\1,5", "inf\\1"]
)
def test_a_pixel_spacing_that_is_none_is_refused_in_both(tmp_path, spacing):
    raw = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag("PixelSpacing"), "DS", len(spacing), spacing.encode(), 0, False, True
    )

    def slice_(d, n):
        if n == 2:
            d[0x00280030] = raw

    def whole(d):
        d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0][0x00280030] = raw

    words = ("PixelSpacing is missing",) if not spacing else ("PixelSpacing is", spacing)
    refused(classic(tmp_path / "classic", volume(), edit=slice_), *words, "s002.dcm")
    refused(multi(tmp_path / "multi", volume(), edit=whole), *words, "a.dcm")


def test_the_spacing_of_a_detector_is_none_of_the_patient(tmp_path):
    def detector(d, n):
        del d.PixelSpacing
        d.ImagerPixelSpacing = [0.3, 0.3]

    refused(
        classic(tmp_path / "a", volume(), edit=detector),
        "PixelSpacing is missing",
        "ImagerPixelSpacing",
    )


def test_a_pixel_spacing_that_changes_is_refused_in_both(tmp_path):
    def slice_(d, n):
        d.PixelSpacing = [2, 2] if n > 3 else [SPACING[1], SPACING[0]]

    def frame(group, n):
        group.PixelMeasuresSequence = item(
            PixelSpacing=[2, 2] if n > 3 else [SPACING[1], SPACING[0]]
        )

    words = "PixelSpacing changes", "0.75 x 1.5 mm", "2 x 2 mm"
    refused(classic(tmp_path / "classic", volume(), edit=slice_), *words)
    refused(multi(tmp_path / "multi", volume(), frame=frame), *words)


def film(folder, sop, **more):
    folder.mkdir()
    d = new(sop)
    put_pixels(d, volume().transpose(2, 1, 0))
    d.NumberOfFrames = NZ
    for keyword, value in more.items():
        setattr(d, keyword, value)
    d.save_as(folder / "a.dcm", enforce_file_format=True)
    return folder


def test_frames_without_positions_are_refused_with_what_they_are(tmp_path):
    refused(film(tmp_path / "sc", CAPTURES), "6 frames", "Secondary Capture", "a.dcm")
    refused(
        film(tmp_path / "xa", XA, ImagerPixelSpacing=[0.3, 0.3], PixelSpacing=[1, 1]),
        "Angiographic",
    )
    refused(
        film(tmp_path / "nm", NM, DetectorInformationSequence=item(ImagePositionPatient=[0, 0, 0])),
        "nuclear",
    )

    def lost(group, n):
        if n == 2:
            del group.PlanePositionSequence

    refused(multi(tmp_path / "lost", volume(), frame=lost), "Frame 3 of 6", "position")

    def first(d):
        d.PerFrameFunctionalGroupsSequence = Sequence(list(d.PerFrameFunctionalGroupsSequence)[:4])

    refused(multi(tmp_path / "few", volume(), edit=first), "announces 6 frames but describes 4")


def test_directions_that_are_none_are_refused(tmp_path):
    def flat(d, n):
        d.ImageOrientationPatient = [0, 0, 0, 0, 0, 0]

    refused(classic(tmp_path / "flat", volume(), edit=flat), "ImageOrientationPatient", "length 1")

    def words(d, n):
        d[0x00200032] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(0x00200032), "DS", 8, b"a\\b\\c   ", 0, False, True
        )

    refused(classic(tmp_path / "words", volume(), edit=words), "ImagePositionPatient is 'a\\b\\c'")


# Several volumes


def twice(name, one, two):
    """Functional groups of frames that alternate between two volumes at the same positions."""

    def frame(group, n):
        value = one if n % 2 == 0 else two
        if name in ("StackID", "TemporalPositionIndex"):
            setattr(group.FrameContentSequence[0], name, value)
        elif name == "EffectiveEchoTime":
            group.MREchoSequence = item(EffectiveEchoTime=value)
        elif name == "DiffusionBValue":
            group.MRDiffusionSequence = item(DiffusionBValue=value)
        elif name == "NominalCardiacTriggerDelayTime":
            group.CardiacSynchronizationSequence = item(NominalCardiacTriggerDelayTime=value)

    return frame


KEYS = {
    "StackID": ("1", "2", "stack ID 1", "stack ID 2"),
    "TemporalPositionIndex": (1, 2, "temporal position 1", "temporal position 2"),
    "EffectiveEchoTime": (2.3, 4.6, "echo time 2.3", "echo time 4.6"),
    "DiffusionBValue": (0.0, 1000.0, "b-value 0", "b-value 1000"),
    "NominalCardiacTriggerDelayTime": (0.0, 250.0, "trigger time 0", "trigger time 250"),
}


@pytest.mark.parametrize("key", KEYS)
def test_volumes_in_one_file_are_listed_and_each_can_be_chosen(tmp_path, key):
    one, two, first, second = KEYS[key]
    a, b = volume(seed=1), volume(seed=2)
    both = np.stack([a, b], 3).reshape(NX, NY, 2 * NZ)
    places = [place for place in positions() for _ in range(2)]
    path = multi(tmp_path / "scan", both, places, frame=twice(key, one, two))
    refused(
        path,
        "2 volumes",
        f"1 ({first}, 6 slices)",
        f"2 ({second}, 6 slices)",
        f"'{path}#{SERIES}/1'",
    )
    for number, values in ((1, a), (2, b)):
        read = read_image(f"{path}#{SERIES}/{number}")
        np.testing.assert_array_equal(read.values, values)
        assert read.grid.spacing[2] == pytest.approx(STEP)
    for wrong in ("3", "0", "x", "-1", "1/1", "99999999999"):
        refused(f"{path}#{SERIES}/{wrong}", "no volume", first)


def test_echoes_at_positions_of_their_own_are_no_volume_together(tmp_path):
    path = multi(tmp_path / "scan", volume(), frame=twice("EffectiveEchoTime", 2.3, 4.6))
    refused(path, "2 volumes", "1 (echo time 2.3, 3 slices)")
    assert read_image(f"{path}#{SERIES}/2").grid.spacing[2] == pytest.approx(2 * STEP)


def test_stacks_of_two_directions_are_volumes(tmp_path):
    def frame(group, n):
        group.FrameContentSequence[0].StackID = "1" if n < 3 else "2"
        if n >= 3:
            group.PlaneOrientationSequence = item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
            group.PlanePositionSequence = item(ImagePositionPatient=[2.0 * n, 0, 0])

    def measures(d):
        first = d.SharedFunctionalGroupsSequence[0]
        for n, group in enumerate(d.PerFrameFunctionalGroupsSequence):
            if n < 3:
                group.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        del first.PlaneOrientationSequence

    path = multi(tmp_path / "scan", volume(), frame=frame, edit=measures)
    refused(path, "2 volumes", "stack ID 2, 3 slices")
    assert read_image(f"{path}#{SERIES}/2").grid.spacing[2] == pytest.approx(2.0)


def test_diffusion_is_listed_by_b_value_and_direction(tmp_path):
    directions = [None, [1, 0, 0], [0, 1, 0]]
    values = [volume(seed=n) for n in range(3)]

    def frame(group, n):
        direction = directions[n % 3]
        group.MRDiffusionSequence = item(DiffusionBValue=0.0 if direction is None else 700.0)
        if direction:
            sequence = item(DiffusionGradientOrientation=direction)
            group.MRDiffusionSequence[0].DiffusionGradientDirectionSequence = sequence

    places = [place for place in positions() for _ in range(3)]
    path = multi(
        tmp_path / "scan", np.stack(values, 3).reshape(NX, NY, 3 * NZ), places, frame=frame
    )
    refused(path, "3 volumes", "b-value 0", "b-value 700, gradient direction 0/1/0")
    np.testing.assert_array_equal(read_image(f"{path}#{SERIES}/3").values, values[1])


def test_echoes_and_moments_of_a_classic_series_are_volumes(tmp_path):
    a, b = volume(seed=1), volume(seed=2)

    def echo(number):
        def edit(d, n):
            d.EchoTime = 4.6 * number
            d.SOPInstanceUID = f"{SERIES}.{100 * number + n}"

        return edit

    classic(tmp_path / "scan", a, edit=echo(1), sop=MR, prefix="a")
    path = classic(tmp_path / "scan", b, edit=echo(2), sop=MR, prefix="b")
    refused(path, "2 volumes", "echo time 4.6", "echo time 9.2")
    np.testing.assert_array_equal(read_image(f"{path}#{SERIES}/2").values, b)
    assert dicom.series_of(path / "b003.dcm") == (
        f"{SERIES}/2",
        [path / f"b{n:03d}.dcm" for n in range(NZ)],
    )

    def moment(number):
        # it differs from slice to slice
        return lambda d, n: setattr(d, "TriggerTime", 40.0 * number + 7 * n)

    classic(tmp_path / "cine", a, edit=moment(0), sop=MR, prefix="b")
    path = classic(tmp_path / "cine", b, edit=moment(10), sop=MR, prefix="a")
    refused(path, "2 volumes", "trigger time from 0,")
    np.testing.assert_array_equal(read_image(f"{path}#{SERIES}/1").values, a)


def test_two_multi_frame_files_of_one_series_are_volumes_or_parts(tmp_path):
    a, b = volume(seed=1), volume(seed=2)
    multi(tmp_path / "scan", a, name="a.dcm")
    path = multi(tmp_path / "scan", b, name="b.dcm")
    refused(path, "2 volumes", "file a.dcm", "file b.dcm")
    np.testing.assert_array_equal(read_image(f"{path}#{SERIES}/2").values, b)
    multi(tmp_path / "parts", a, name="a.dcm", order=[0, 1, 2])
    np.testing.assert_array_equal(
        read_image(multi(tmp_path / "parts", a, name="b.dcm", order=[3, 4, 5])).values, a
    )


def test_a_copied_slice_or_frame_is_refused(tmp_path):
    path = classic(tmp_path / "classic", volume())
    (path / "copy.dcm").write_bytes((path / "s002.dcm").read_bytes())
    refused(path, "two slices at the same position", "copy.dcm and s002.dcm")
    places = positions()
    refused(
        multi(tmp_path / "multi", volume(), [*places[:3], *places[2:5]]),
        "two slices at the same position",
    )


def test_two_directions_in_a_series_are_refused(tmp_path):
    path = classic(tmp_path / "scan", volume())

    def upright(d, n):
        d.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    refused(
        classic(path, volume(), positions()[:1], edit=upright, prefix="scout"),
        "differ in size or direction",
    )


# What is not a scan


def other(folder, sop, name, *, series="1.2.9", pixels=False, **more):
    folder.mkdir(parents=True, exist_ok=True)
    d = new(sop, series=series)
    if pixels:
        put_pixels(d, volume().transpose(2, 1, 0))
        d.NumberOfFrames = NZ
        d.ImagePositionPatient, d.ImageOrientationPatient, d.PixelSpacing = (
            [0, 0, 0],
            [1, 0, 0, 0, 1, 0],
            [1, 1],
        )
    for keyword, value in more.items():
        setattr(d, keyword, value)
    d.save_as(folder / name, enforce_file_format=True)
    return folder


def test_what_is_no_scan_is_skipped_beside_one_and_named_alone(tmp_path):
    values = volume()
    path = classic(tmp_path / "scan", values)
    kinds = {
        "dose": (DOSE, True),
        "rtss": (STRUCTURES, False),
        "seg": (SEG, True),
        "sr": (REPORT, False),
    }
    for name, (sop, pixels) in kinds.items():
        other(path, sop, f"{name}.dcm", pixels=pixels)
        refused(
            other(tmp_path / name, sop, f"{name}.dcm", pixels=pixels),
            f"no DICOM scan, only {name}.dcm",
        )
    d = new(CAPTURE, series="1.2.8")
    put_pixels(d, np.zeros((20, 30), np.uint8))
    d.save_as(path / "page.dcm", enforce_file_format=True)
    with pytest.warns(
        DicomWarning,
        match=r"skipped: dose\.dcm \(RT Dose\), rtss\.dcm .*page\.dcm \(Secondary Capture",
    ):
        np.testing.assert_array_equal(read_image(path).values, values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(f"{path}#{SERIES}").values, values)
    refused(f"{path}#1.2.9", "is not a scan", "RT Dose")
    with pytest.raises(InputError, match="is not a scan but an RT Dose"):
        dicom.series_of(path / "dose.dcm")


def test_a_capture_within_the_series_is_skipped_but_a_lost_position_is_refused(tmp_path):
    values = volume()
    path = classic(tmp_path / "scan", values)
    d = new(CAPTURE, 77)
    put_pixels(d, np.zeros((20, 30), np.uint8))
    d.save_as(path / "page.dcm", enforce_file_format=True)
    with pytest.warns(DicomWarning, match=r"page\.dcm"):
        np.testing.assert_array_equal(read_image(path).values, values)

    def lost(d, n):
        if n == NZ - 1:
            del d.ImagePositionPatient

    refused(classic(tmp_path / "lost", values, edit=lost), "s005.dcm", "position")


def test_what_is_no_dicom_is_ignored_but_a_damaged_slice_is_named(tmp_path):
    values = volume()
    path = classic(tmp_path / "scan", values)
    for name in ("DICOMDIR", "Thumbs.db", "notes.txt", ".hidden.dcm", "README"):
        (path / name).write_bytes(b"text" * 90)
    os.mkfifo(path / "pipe")
    np.testing.assert_array_equal(read_image(path).values, values)
    last = path / "s005.dcm"
    whole = last.read_bytes()
    for length in (0, 100, 131, 140, 300, 600, len(whole) - 2):
        last.write_bytes(whole[:length])
        refused(path, "s005.dcm")


def test_a_mosaic_is_refused_as_one(tmp_path):
    def named(d, n):
        d.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]

    refused(classic(tmp_path / "named", volume(), edit=named), "Siemens mosaic: all", "dcm2niix")
    tag = b"NumberOfImagesInMosaic".ljust(64, b"\0") + struct.pack("<i4s3i", 1, b"US", 6, 6, 77)
    tag += struct.pack("<4i", 8, 8, 77, 8) + b"36".ljust(8, b"\0")

    def csa(d, n):
        d.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
        d.add_new(0x00291010, "OB", b"SV10\4\3\2\1" + struct.pack("<2i", 1, 77) + tag)

    refused(classic(tmp_path / "csa", volume(), edit=csa), "Siemens mosaic: 36 slices")


def test_a_series_of_a_multi_frame_file_is_that_file(tmp_path):
    path = multi(tmp_path / "scan", volume())
    assert dicom.series_of(path / "a.dcm") == (SERIES, [path / "a.dcm"])


def test_colour_and_tables_are_refused(tmp_path):
    def colour(d, n):
        put_pixels(d, np.zeros((NY, 3 * NX), np.uint8))
        d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation, d.PlanarConfiguration = (
            NX,
            3,
            "RGB",
            0,
        )

    refused(classic(tmp_path / "rgb", volume(), edit=colour), "colour image", "s000.dcm")

    def palette(d, n):
        d.PhotometricInterpretation = "PALETTE COLOR"

    refused(classic(tmp_path / "palette", volume(), edit=palette), "colour image")

    def table(d, n):
        d.ModalityLUTSequence = item(LUTDescriptor=[2, 0, 16], ModalityLUTType="US")

    refused(classic(tmp_path / "table", volume(), edit=table), "Modality LUT")
