"""The values of DICOM slices: scaled, signed, masked, compressed, cut short; and the files that
pydicom ships.
"""

import shutil
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.io import dicom_pixels, read_image
from napari_shmoareg.io import dicom_pixels as dicom_pixels_module
from napari_shmoareg.io.dicom_pixels import DicomWarning

from .test_dicom_rules import SERIES, item, new, put_pixels, refused

CT, PET, ENHANCED_PET = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "128", "130"))
NX, NY, NZ = 9, 7, 4
SHIPPED = Path(pydicom.__file__).parent / "data"


def volume(low=0, high=900, dtype=np.int16):
    return np.random.default_rng(3).integers(low, high, (NX, NY, NZ), dtype=dtype)


def classic(folder, values, *, edit=None, sop=CT, syntax=ExplicitVRLittleEndian):
    """A file for each slice; `values` may be a list of slices of several types."""
    folder.mkdir(exist_ok=True)
    for n in range(NZ):
        d = new(sop, n, syntax=syntax)
        d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 3 * n], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing = [1, 1]
        put_pixels(d, values[n].T if isinstance(values, list) else values[:, :, n].T)
        if edit:
            edit(d, n)
        pydicom.dcmwrite(folder / f"{n}.dcm", d, enforce_file_format=True)
    return folder


def scaled(slopes, intercepts):
    def edit(d, n):
        d.RescaleSlope, d.RescaleIntercept = str(slopes[n]), str(intercepts[n])

    return edit


def multi(folder, values, *, slopes=None, intercepts=None, edit=None, sop=ENHANCED_PET):
    folder.mkdir(exist_ok=True)
    d = new(sop, 0)
    put_pixels(d, values.transpose(2, 1, 0))
    d.NumberOfFrames = NZ
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = item(PixelSpacing=[1, 1])
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    for n in range(NZ):
        group = Dataset()
        group.PlanePositionSequence = item(ImagePositionPatient=[0, 0, 3 * n])
        if slopes:
            group.PixelValueTransformationSequence = item(
                RescaleSlope=str(slopes[n]), RescaleIntercept=str(intercepts[n]), RescaleType="US"
            )
        frames.append(group)
    d.PerFrameFunctionalGroupsSequence = Sequence(frames)
    if edit:
        edit(d)
    d.save_as(folder / "a.dcm", enforce_file_format=True)
    return folder


# Slope and intercept


@pytest.mark.parametrize(
    "slopes", [[1, 0.0012, 0.0024, 0.0036], [1, 0.53, 0.56, 0.59], [2.5, 1, 1, 3], [-1, 1, 1, 1]]
)
def test_each_slice_is_scaled_by_its_own_slope_and_intercept(tmp_path, slopes):
    values, intercepts = volume(0, 30000, np.uint16), [0, -5.5, 0, 100]
    want = values * np.array(slopes) + intercepts
    for path in (
        classic(tmp_path / "classic", values, edit=scaled(slopes, intercepts), sop=PET),
        multi(tmp_path / "multi", values, slopes=slopes, intercepts=intercepts),
    ):
        read = read_image(path).values
        assert read.dtype.kind == "f"
        np.testing.assert_allclose(read, want, rtol=1e-6)


def test_whole_intercepts_keep_integers_in_a_type_that_holds_all_slices(tmp_path):
    values = volume(0, 65535, np.uint16)
    for intercepts, dtype in (
        ([-1024] * 4, np.int32),
        ([0] * 4, np.uint16),
        ([0, -1, 0, 70000], np.int32),
    ):
        read = read_image(
            classic(tmp_path / str(intercepts), values, edit=scaled([1] * 4, intercepts))
        ).values
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, values.astype(int) + intercepts)


def test_what_single_precision_cannot_tell_apart_is_read_in_double(tmp_path):
    values = volume(0, 2**31 - 1, np.int32)
    read = read_image(classic(tmp_path / "a", values, edit=scaled([0.5] * 4, [0] * 4))).values
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, values * 0.5)


def test_signed_and_unsigned_slices_stand_side_by_side(tmp_path):
    slices = [
        volume(0, 65535, np.uint16)[:, :, 0],
        *(volume(-900, 900)[:, :, n] for n in range(1, NZ)),
    ]
    read = read_image(classic(tmp_path / "a", slices)).values
    np.testing.assert_array_equal(read, np.stack([each.astype(int) for each in slices], 2))


@pytest.mark.parametrize(
    ("bits", "high", "sign"), [(12, 11, 0), (12, 11, 1), (12, 15, 0), (10, 12, 1), (16, 15, 1)]
)
def test_only_the_stored_bits_count_whatever_stands_in_the_others(tmp_path, bits, high, sign):
    low = -(1 << bits - 1) if sign else 0
    values = volume(low, low + (1 << bits) - 1, np.int32)
    garbage = np.random.default_rng(0).integers(0, 65536, values.shape)
    shift = high + 1 - bits
    mask = ((1 << bits) - 1) << shift
    stored = ((values << shift) & mask) | (garbage & ~mask)

    def edit(d, n):
        d.BitsStored, d.HighBit, d.PixelRepresentation = bits, high, sign

    for syntax in (ExplicitVRLittleEndian, ExplicitVRBigEndian):
        path = classic(tmp_path / syntax, stored.astype(np.uint16), edit=edit, syntax=syntax)
        np.testing.assert_array_equal(read_image(path).values, values)


@pytest.mark.parametrize(
    ("slope", "word"), [("0", "other than 0"), ("nan", "nan"), ("1,5", "1,5"), ("inf", "inf")]
)
def test_a_slope_that_is_none_is_refused(tmp_path, slope, word):
    def edit(d, n):
        d[0x00281053] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(0x00281053), "DS", len(slope), slope.encode(), 0, False, True
        )

    refused(classic(tmp_path / "a", volume(), edit=edit), "RescaleSlope", word, "0.dcm")


def test_a_real_world_value_mapping_counts_only_where_nothing_else_does(tmp_path):
    values = volume(0, 900, np.uint16)

    def mapped(d):
        for group in d.PerFrameFunctionalGroupsSequence:
            group.RealWorldValueMappingSequence = item(
                RealWorldValueSlope=0.5, RealWorldValueIntercept=-3.0
            )

    np.testing.assert_array_equal(
        read_image(multi(tmp_path / "a", values, edit=mapped)).values, values * 0.5 - 3
    )
    read = read_image(
        multi(tmp_path / "b", values, slopes=[2] * 4, intercepts=[1] * 4, edit=mapped)
    ).values
    np.testing.assert_array_equal(read, values * 2.0 + 1)


def test_floating_point_pixels_are_read_as_they_are(tmp_path):
    values = volume().astype(np.float32) / 7

    def edit(d):
        del d.PixelData, d.BitsStored, d.HighBit, d.PixelRepresentation
        d.FloatPixelData = np.ascontiguousarray(values.transpose(2, 1, 0)).tobytes()

    path = multi(tmp_path / "a", volume(), edit=edit, sop="1.2.840.10008.5.1.4.1.1.30")
    read = read_image(path).values
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


def test_monochrome1_changes_no_value_and_is_not_mixed(tmp_path):
    def inverted(d, n):
        d.PhotometricInterpretation = "MONOCHROME1"

    def mixed(d, n):
        d.PhotometricInterpretation = f"MONOCHROME{1 + n % 2}"

    np.testing.assert_array_equal(
        read_image(classic(tmp_path / "a", volume(), edit=inverted)).values, volume()
    )
    refused(classic(tmp_path / "b", volume(), edit=mixed), "MONOCHROME1, MONOCHROME2")


# Transfer syntaxes


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda s: s.name[:12],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_every_uncompressed_syntax_gives_the_same_values(tmp_path, syntax, dtype):
    values = volume(0, 200, dtype)
    path = classic(tmp_path / "a", values, syntax=syntax, edit=scaled([1] * 4, [-10] * 4))
    np.testing.assert_array_equal(read_image(path).values, values.astype(int) - 10)


def test_bytes_in_big_endian_words_are_put_in_order(tmp_path):
    values = volume(0, 200, np.uint8)

    def words(d, n):
        d.PixelData = np.frombuffer(d.PixelData, "u1").reshape(-1, 2)[:, ::-1].tobytes()
        d["PixelData"].VR = "OW"

    path = classic(tmp_path / "a", values, syntax=ExplicitVRBigEndian, edit=words)
    np.testing.assert_array_equal(read_image(path).values, values)


def test_files_without_preamble_or_meta_information_are_read(tmp_path):
    values = volume()
    path = classic(tmp_path / "a", values, syntax=ImplicitVRLittleEndian)
    for file in path.iterdir():
        pydicom.dcmwrite(
            file,
            pydicom.dcmread(file),
            implicit_vr=True,
            little_endian=True,
            enforce_file_format=False,
        )
        d = pydicom.dcmread(file)
        d.file_meta, d.preamble = FileMetaDataset(), None
        d.save_as(file.with_suffix(""), implicit_vr=True, little_endian=True)
        file.unlink()
    assert b"DICM" not in next(path.iterdir()).read_bytes()[:200]
    np.testing.assert_array_equal(read_image(path).values, values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_run_length_encoding_is_read_and_scaled_once(tmp_path, dtype):
    values = volume(0, 200, dtype)

    def edit(d, n):
        scaled([1, 2, 3, 4], [0, -5, 0, 0])(d, n)
        d.compress(RLELossless)

    want = values * np.array([1, 2, 3, 4.0]) + [0, -5, 0, 0]
    np.testing.assert_array_equal(
        read_image(classic(tmp_path / "a", values, edit=edit)).values, want
    )
    frames = multi(
        tmp_path / "b",
        values,
        slopes=[1, 2, 3, 4],
        intercepts=[0, -5, 0, 0],
        edit=lambda d: d.compress(RLELossless),
    )
    np.testing.assert_array_equal(read_image(frames).values, want)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_lossless_jpeg_is_read_and_scaled_once(tmp_path, compressor):
    values = volume(-900, 900)
    for n in range(NZ):
        image = sitk.GetImageFromArray(np.ascontiguousarray(values[:, :, n].T)[None])
        tags = {
            "0008|0060": "CT",
            "0020|000e": SERIES,
            "0020|0032": f"0\\0\\{3 * n}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, text in tags.items():
            image.SetMetaData(tag, text)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(tmp_path / f"{n}.dcm"))
        writer.Execute(image)
        d = pydicom.dcmread(tmp_path / f"{n}.dcm")
        assert d.file_meta.TransferSyntaxUID.is_compressed
        d.RescaleSlope, d.RescaleIntercept = "1", str(-1000 - n)
        d.save_as(tmp_path / f"{n}.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path).values, values - 1000 - np.arange(NZ))


def test_compression_with_loss_is_warned_about_and_other_kinds_are_named(tmp_path):
    shutil.copy(SHIPPED / "test_files" / "693_J2KI.dcm", tmp_path)
    with pytest.warns(DicomWarning, match="compressed lossily"):
        read_image(tmp_path)

    def video(d, n):
        d.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
        d.PixelData = encapsulate([b"\0\0\1\0"])
        d["PixelData"].is_undefined_length = True

    refused(classic(tmp_path / "video", volume(), edit=video), "MPEG-4", "0.dcm")


# Pixels that are not all there


def test_fewer_or_more_pixels_than_announced_are_refused(tmp_path):
    def shorter(d, n):
        if n == 1:
            d.PixelData = d.PixelData[:-4]

    refused(
        classic(tmp_path / "short", volume(), edit=shorter),
        "122 bytes of pixels",
        "requires 126",
        "1.dcm",
    )

    def frames(number):
        def edit(d):
            d.NumberOfFrames = number
            groups = list(d.PerFrameFunctionalGroupsSequence)
            d.PerFrameFunctionalGroupsSequence = Sequence((groups * 2)[:number])

        return edit

    refused(multi(tmp_path / "more", volume(), edit=frames(6)), "in 6 frames", "a.dcm")
    refused(multi(tmp_path / "less", volume(), edit=frames(3)), "in 3 frames", "a.dcm")
    refused(
        multi(tmp_path / "huge", volume(), edit=lambda d: setattr(d, "NumberOfFrames", 2**31 - 1)),
        "2147483647",
    )

    def wide(d, n):
        d.Rows = d.Columns = 65535

    refused(classic(tmp_path / "wide", volume(), edit=wide), "65535 x 65535 pixels")


def test_fewer_compressed_frames_than_announced_are_refused(tmp_path):
    def lose(count):
        def edit(d):
            d.compress(RLELossless)
            _, *fragments = generate_fragments(d.PixelData)  # after the table of offsets
            kept = fragments[:count]
            d.PixelData = encapsulate(kept, has_bot=False)
            d["PixelData"].is_undefined_length = True

        return edit

    refused(multi(tmp_path / "fewer", volume(), edit=lose(3)), "announces 4 frames but contains 3")
    path = multi(tmp_path / "cut", volume(), edit=lose(4))
    whole = (path / "a.dcm").read_bytes()
    (path / "a.dcm").write_bytes(whole[:-30])
    refused(path, "a.dcm", "cut short")
    path = classic(tmp_path / "rle", volume(), edit=lambda d, n: d.compress(RLELossless))
    d = pydicom.dcmread(path / "2.dcm")
    d.PixelData = encapsulate([b"\1\0\0\0" + b"\0" * 80])
    d.save_as(path / "2.dcm")
    refused(path, "2.dcm", "cannot be decompressed")


def test_a_compressed_frame_of_another_size_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_pixels, "_decoded_by_gdcm", lambda *_: pytest.fail("unpacked"))
    stream = (
        b"\xff\x4f\xff\x51"
        + bytes([0, 41, 0, 0])
        + b"\0\1\0\0" * 2
        + bytes(24)
        + bytes([0, 1])
        + bytes(60)
    )

    def edit(d, n):
        d.file_meta.TransferSyntaxUID = JPEG2000Lossless
        d.PixelData = encapsulate([stream])
        d["PixelData"].is_undefined_length = True

    refused(classic(tmp_path / "a", volume(), edit=edit), "9 x 7 pixels", "65536 x 65536")


@pytest.mark.parametrize(
    "code", ["import os; os.abort()", "import time; time.sleep(60)"], ids=["crash", "hang"]
)
def test_a_decoder_that_crashes_or_hangs_ends_in_a_plain_error(tmp_path, monkeypatch, code):
    def start(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-c", code], **pipes)

    monkeypatch.setattr(dicom_pixels_module.Decoder, "_start", start)
    monkeypatch.setattr(dicom_pixels_module, "FRAME_TIMEOUT", 0.5)
    shutil.copy(SHIPPED / "test_files" / "MR_small_jp2klossless.dcm", tmp_path)
    refused(tmp_path, "MR_small_jp2klossless.dcm cannot be decompressed", "the decoder failed")


def test_a_deflated_file_cut_short_or_swollen_is_refused(tmp_path):
    path = classic(tmp_path / "a", volume(), syntax=DeflatedExplicitVRLittleEndian)
    whole = (path / "2.dcm").read_bytes()
    (path / "2.dcm").write_bytes(whole[:-60])
    refused(path, "2.dcm")
    start = whole.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    (path / "2.dcm").write_bytes(whole[:start] + bomb)
    refused(path, "2.dcm")


def test_memory_is_asked_for_before_pixels_are_read(tmp_path, monkeypatch):
    path = classic(tmp_path / "a", volume())
    monkeypatch.setattr(dicom_pixels, "_frames", lambda *_: pytest.fail("read"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 100}))
    with pytest.raises(TooLargeError, match="memory"):
        read_image(path)


# What others wrote


def test_deep_and_endless_elements_are_refused_by_name(tmp_path):
    path = classic(tmp_path / "a", volume())
    whole = (path / "1.dcm").read_bytes()
    at = whole.index(b"\x28\0\x02\0US")
    deep = (b"\x28\0\x00\x30SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 5000
    for content in (
        deep,
        b"\x28\0\x30\0UN\0\0\xf0\xff\xff\xff",
        b"\x20\0\x32\0UT\0\0\xf0\xff\xff\xff",
    ):
        (path / "1.dcm").write_bytes(whole[:at] + content + whole[at:])
        refused(path, "1.dcm")


def test_every_file_that_pydicom_ships_is_read_as_pydicom_reads_it_or_refused(tmp_path):
    files = sorted(
        p for p in SHIPPED.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".json")
    )
    assert len(files) > 100
    read, colour = [], 0
    for n, file in enumerate(files):
        (tmp_path / str(n)).mkdir()
        shutil.copy(file, tmp_path / str(n))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                volume = read_image(tmp_path / str(n))
            except InputError as error:
                colour += "colour" in str(error)
                continue
            dataset = pydicom.dcmread(file)
            if "jpeg_ls" in file.name:  # a plug-in of pydicom's would be needed
                pixels = pydicom.dcmread(file.with_name("MR_small.dcm")).pixel_array
            else:
                pixels = dataset.pixel_array
            want = pixels * float(dataset.get("RescaleSlope", 1)) + float(
                dataset.get("RescaleIntercept", 0)
            )
        np.testing.assert_array_equal(volume.values[:, :, 0], want.T, err_msg=str(file))
        np.testing.assert_allclose(
            volume.grid.spacing[:2], [float(each) for each in dataset.PixelSpacing[::-1]]
        )
        np.testing.assert_allclose(
            volume.grid.affine[:3, 3] * [-1, -1, 1], dataset.ImagePositionPatient, atol=1e-9
        )
        read.append(file.name)
    assert {
        "CT_small.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
    } <= set(read)
    assert {
        "MR_small_implicit.dcm",
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "examples_overlay.dcm",
    } <= set(read)
    assert (
        not {"rtdose.dcm", "liver_1frame.dcm", "MR_truncated.dcm", "badVR.dcm"} & set(read)
        and colour > 20
    )
