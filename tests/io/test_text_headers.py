"""NRRD and MetaImage: what a header says is what is read, as ITK reads it; or a true reason."""

from __future__ import annotations

import bz2
import gzip
import os
import random
import shutil
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from napari_shmoareg.errors import InputError, TooLargeError
from napari_shmoareg.io import read_image
from napari_shmoareg.io.images import inspect_file
from napari_shmoareg.io.orientation import GuessedOrientation
from napari_shmoareg.io.streams import ALLOW_OUTSIDE, UnreadBytes

SIZES = (6, 5, 4)
STORED = np.arange(120, dtype="<i2")
RAW = STORED.tobytes()
VALUES = STORED.reshape(SIZES, order="F")
NRRD = {
    "type": "short",
    "dimension": 3,
    "sizes": "6 5 4",
    "encoding": "raw",
    "endian": "little",
    "space": "left-posterior-superior",
    "space directions": "(0,2,0) (-2,0,0.5) (0,0,3)",
    "space origin": "(1,2,3)",
}
META = {
    "ObjectType": "Image",
    "NDims": 3,
    "BinaryData": True,
    "BinaryDataByteOrderMSB": False,
    "CompressedData": False,
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "1 2 3",
    "CenterOfRotation": "9 9 9",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "1 2 3",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NO_SPACE = {"space": None, "space directions": None, "space origin": None}


def nrrd(path, raw=RAW, *, end="\n", **fields):
    """A file with some fields changed (blanks of a name as _); None leaves one out."""
    said = NRRD | {name.replace("_", " "): value for name, value in fields.items()}
    lines = [f"{name}: {value}\n" for name, value in said.items() if value is not None]
    path.write_bytes(("NRRD0005\n" + "".join(lines) + end).encode() + raw)
    return path


def meta(path, raw=RAW, **fields):
    said = META | fields
    said["ElementDataFile"] = said.pop("ElementDataFile")
    path.write_bytes(
        "".join(f"{k} = {v}\n" for k, v in said.items() if v is not None).encode() + raw
    )
    return path


def check_as_itk(path, channel=0):
    """Values and place are those that ITK reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuessedOrientation)
        found = read_image(path, channel=channel)
    read = sitk.ReadImage(str(path))
    n, several = read.GetDimension(), read.GetNumberOfComponentsPerPixel() > 1
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(read.GetDirection(), (n, n)) * read.GetSpacing())[:3, :3]
    affine[:3, 3] = read.GetOrigin()[:3]
    np.testing.assert_allclose(found.grid.affine, np.diag([-1, -1, 1, 1]) @ affine, atol=1e-9)
    voxels = sitk.GetArrayFromImage(read).transpose([*range(n)[::-1], *([n] if several else [])])
    np.testing.assert_array_equal(found.values, voxels.reshape(*voxels.shape[:3], -1)[..., channel])
    assert found.values.dtype.isnative


FOUR = {"dimension": 4, "space_directions": "none (2,0,0) (0,2,0) (0,0,3)"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        *(
            {"space": space}
            for space in ("RAS", "left-anterior-superior", "LPS", "scanner-xyz", "3D-right-handed")
        ),
        {"endian": "big"},
        {"encoding": "gzip", "raw": gzip.compress(RAW)},
        {"encoding": "gz", "raw": gzip.compress(b"abcd" + RAW), "byte_skip": 4},
        {"encoding": "gz", "raw": b"a\nb\n" + gzip.compress(RAW), "line_skip": 2},
        {"encoding": "ascii", "raw": b" ".join(b"%d" % v for v in STORED)},
        {"encoding": "hex", "raw": RAW.hex().encode()},
        {"byte_skip": -1, "raw": b"something" + RAW},
        {"line_skip": 1, "byte_skip": 3, "raw": b"line\n123" + RAW},
        {"type": "unsigned short int"},
        {"type": "uint64", "raw": STORED.astype("<u8").tobytes()},
        {"type": "double", "raw": STORED.astype("<f8").tobytes()},
        {**FOUR, "sizes": "2 3 5 4", "kinds": "vector domain domain domain"},
        {**FOUR, "sizes": "2 3 5 4", "kinds": "list domain domain domain"},
        {
            "dimension": 4,
            "sizes": "6 2 5 2",
            "kinds": "domain list domain domain",
            "space_directions": "(2,0,0) none (0,2,0) (0,0,3)",
        },
        {
            "dimension": 4,
            "sizes": "6 5 2 2",
            "space": "left-posterior-superior-time",
            "space_directions": "(2,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,9)",
            "space_origin": "(1,2,3,0)",
        },
        {**NO_SPACE, "spacings": "1 2 3"},
        {**NO_SPACE, "spacings": "1 -2 3", "thicknesses": "1 1 1"},
        {**NO_SPACE, "spacings": "1 2 3", "axis_mins": "10 20 30"},
        {**NO_SPACE, "spacings": "1 2 3", "axis_mins": "10 20 30", "centers": "node cell node"},
        {
            "space_directions": "( 0, 2, 0 ) (-2,0,0.5) (0,0,3)",
            "measurement_frame": "(0,1,0) (1,0,0) (0,0,1)",
        },
    ],
)
def test_an_nrrd_is_read_as_itk_reads_it(fields, tmp_path):
    fields = {name.replace(" ", "_"): value for name, value in fields.items()}
    check_as_itk(nrrd(tmp_path / "a.nrrd", **fields), channel=1 if "dimension" in fields else 0)


@pytest.mark.parametrize(
    "data", ["x.raw", "./x.raw", "s%02d.raw 0 3 1", "s%02d.raw 3 0 -1 2", "LIST"]
)
def test_a_detached_nrrd_is_read_as_itk_reads_it(data, tmp_path):
    (tmp_path / "x.raw").write_bytes(RAW)
    for n in range(4):
        (tmp_path / f"s{n:02d}.raw").write_bytes(RAW[60 * n : 60 * n + 60])
    listed = b"".join(b"s%02d.raw\n" % n for n in range(4)) if data == "LIST" else b""
    check_as_itk(nrrd(tmp_path / "a.nhdr", listed, end="", data_file=data))


def test_what_itk_cannot_read_of_nrrd_is_right_too(tmp_path):
    packed = nrrd(tmp_path / "a.nrrd", bz2.compress(RAW), encoding="bzip2")
    np.testing.assert_array_equal(read_image(packed).values, VALUES)
    timed = nrrd(
        tmp_path / "b.nrrd",
        dimension=4,
        sizes="6 5 2 2",
        kinds="domain domain domain time",
        space_directions="(2,0,0) (0,2,0) (0,0,3) none",
    )
    np.testing.assert_array_equal(read_image(timed, channel=1).values, VALUES[:, :, 2:])
    ends = NO_SPACE | {"axis mins": "0 0 0", "axis maxs": "12 10 8", "centers": "cell cell cell"}
    with pytest.warns(GuessedOrientation):
        grid = read_image(
            nrrd(tmp_path / "c.nrrd", **{k.replace(" ", "_"): v for k, v in ends.items()})
        ).grid
    assert grid.spacing == (2, 2, 2)


@pytest.mark.parametrize(
    ("units", "mm", "warned"),
    [
        ('"um" "um" "um"', (0.001,) * 3, 0),
        ('"μm" "μm" "μm"', (0.001,) * 3, 0),
        ('"\u00b5m" "\u00b5m" "\u00b5m"', (0.001,) * 3, 0),
        ('"microns" "micron" "micrometer"', (0.001,) * 3, 0),
        ('"nm" "nm" "nm"', (1e-6,) * 3, 0),
        ('"cm" "cm" "cm"', (10,) * 3, 0),
        ('"m" "m" "m"', (1000,) * 3, 0),
        ('"mm" "mm" "mm"', (1,) * 3, 0),
        ('"" "" ""', (1,) * 3, 0),
        ('"um" "um" "mm"', (0.001, 0.001, 1), 0),
        ('"um" "um" ""', (0.001,) * 3, 0),
        ('"furlong" "furlong" "furlong"', (1,) * 3, 1),
    ],
)
def test_units_of_an_nrrd_become_mm(units, mm, warned, tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        affine = read_image(nrrd(tmp_path / "a.nrrd", space_units=units)).grid.affine
    expected = np.array([[0, 2, 0, -1], [-2, 0, 0, -2], [0, 0.5, 3, 3], [0, 0, 0, 1]], dtype=float)
    expected[0], expected[1] = [0, 2, 0, -1], [-2, 0, 0, -2]
    np.testing.assert_allclose(affine, np.diag([*mm, 1]) @ expected)
    assert ["'furlong'" in str(each.message) for each in said] == [True] * warned


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("um", 0.001), ("cm", 10)])
def test_the_unit_of_a_metaimage_becomes_mm(unit, mm, tmp_path):
    np.testing.assert_allclose(
        read_image(meta(tmp_path / "a.mha", DistanceUnits=unit)).grid.spacing,
        np.array([1, 2, 3]) * mm,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Offset": None, "Position": "7 8 9"},
        {"Offset": None, "Origin": "7 8 9"},
        {"ElementSize": "9 9 9"},
        {"ElementSpacing": None, "ElementSize": "4 5 6"},
        {"ElementSpacing": "-1 2 3"},
        {"TransformMatrix": None, "Rotation": "0 1 0 -1 0 0 0 0 1"},
        {"BinaryDataByteOrderMSB": True},
        {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"},
        {"HeaderSize": -1, "raw": b"something" + RAW},
        {
            "CompressedData": True,
            "CompressedDataSize": len(zlib.compress(RAW)),
            "raw": zlib.compress(RAW),
        },
        {"ElementNumberOfChannels": 2, "DimSize": "3 5 4"},
        {"ElementType": "MET_LONG", "raw": STORED.astype("<i4").tobytes()},
        {"ElementType": "MET_LONG_LONG", "raw": STORED.astype("<i8").tobytes()},
        {"ElementType": "MET_FLOAT", "raw": STORED.astype("<f4").tobytes()},
        {"Comment": "a = b : c"},
        {
            "NDims": 4,
            "DimSize": "6 5 2 2",
            "TransformMatrix": "0 1 0 0 -1 0 0 0 0 0 1 0 0 0 0 1",
            "Offset": "1 2 3 4",
            "ElementSpacing": "1 2 3 4",
            "CenterOfRotation": None,
        },
    ],
)
def test_a_metaimage_is_read_as_itk_reads_it(fields, tmp_path):
    channel = 1 if {"NDims", "ElementNumberOfChannels"} & set(fields) else 0
    check_as_itk(meta(tmp_path / "a.mha", **fields), channel)


@pytest.mark.parametrize("data", ["x.raw", "s%02d.raw 0 3 1", "LIST", "LIST 2D"])
def test_a_detached_metaimage_is_read_as_itk_reads_it(data, tmp_path):
    (tmp_path / "x.raw").write_bytes(b"12345" + RAW)
    for n in range(4):
        (tmp_path / f"s{n:02d}.raw").write_bytes(RAW[60 * n : 60 * n + 60])
    listed = b"".join(b"s%02d.raw\n" % n for n in range(4)) if "LIST" in data else b""
    check_as_itk(
        meta(
            tmp_path / "a.mhd", listed, ElementDataFile=data, HeaderSize=5 if data == "x.raw" else 0
        )
    )


def test_text_and_scaling_of_a_metaimage(tmp_path):
    text = meta(tmp_path / "a.mha", b" ".join(b"%d" % v for v in STORED), BinaryData=False)
    np.testing.assert_array_equal(read_image(text).values, VALUES)
    with pytest.warns(UserWarning, match="ElementToIntensityFunctionSlope"):
        read_image(meta(tmp_path / "b.mha", ElementToIntensityFunctionSlope=2))


@pytest.mark.parametrize(
    "number", ["-1", "0", "8", "100", "99999999", "9" * 30, "", "3 3", "x", "3.0", "1_0"]
)
def test_a_number_of_axes_that_cannot_be_is_refused_before_itk_could_die_of_it(number, tmp_path):
    with pytest.raises(InputError, match="NDims"):
        read_image(meta(tmp_path / "a.mha", NDims=number))
    with pytest.raises(InputError, match="dimension"):
        read_image(nrrd(tmp_path / "a.nrrd", dimension="17" if number == "8" else number))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"DimSize": "6 5"}, "DimSize"),
        ({"DimSize": "6 5 -4"}, "announces the shape"),
        ({"DimSize": "6 5 0"}, "is empty"),
        ({"DimSize": "6 5 5"}, "300 bytes of voxels were expected in a.mha, 240 could be read"),
        ({"ElementType": "MET_OTHER"}, "ElementType is 'MET_OTHER'"),
        ({"ElementType": None}, "ElementType"),
        ({"ElementSpacing": "1 nan 3"}, "spacing .1.0, nan, 3.0."),
        ({"ElementSpacing": "1 2"}, "ElementSpacing has 2 numbers; 3 were expected"),
        ({"TransformMatrix": "1 0 0 0 1 0"}, "TransformMatrix has 6 numbers"),
        ({"Offset": "0 0 inf"}, "finite"),
        ({"ElementNumberOfChannels": "-1"}, "-1 channels"),
        ({"BinaryData": "maybe"}, "True or False was expected"),
        ({"HeaderSize": "-2"}, "HeaderSize is -2"),
        ({"ObjectType": "Mesh"}, "contains a 'Mesh'"),
        ({"ElementDataFile": None}, "has no ElementDataFile|not a MetaImage field"),
        ({"ElementDataFile": "gone.raw"}, "names a data file that cannot be used"),
        ({"ElementDataFile": "%05d.raw 1 99999999 1"}, "counts 99999999 files"),
        ({"DimSize": "65536 65536 65536"}, "GiB of memory"),
        ({"Comment": "x" * (2 << 20)}, "more than 1 MiB"),
    ],
)
def test_a_metaimage_header_that_cannot_be_is_refused_with_what_is_wrong(fields, says, tmp_path):
    path = meta(
        tmp_path / "a.mha",
        **(fields if "ElementDataFile" not in fields or fields["ElementDataFile"] else {}),
    )
    if fields.get("ElementDataFile", "") is None:
        path.write_bytes(path.read_bytes().replace(b"ElementDataFile = LOCAL\n", b""))
    with pytest.raises(InputError, match=says):
        read_image(path)
    inspect_file(path)


def test_a_field_given_twice_is_refused(tmp_path):
    path = meta(tmp_path / "a.mha")
    path.write_bytes(b"ElementSpacing = 5 5 5\n" + path.read_bytes())
    with pytest.raises(InputError, match="elementspacing is given twice, as '5 5 5' and '1 2 3'"):
        read_image(path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sizes": "6 5"}, "'sizes' is '6 5'; 3 whole numbers"),
        ({"sizes": "6 5 -4"}, "its sizes are"),
        ({"sizes": "6 5 0"}, "is empty"),
        ({"sizes": "6 5 5"}, "300 bytes of voxels were expected"),
        ({"sizes": "1048576 1048576 1048576"}, "GiB of memory"),
        ({"type": "block"}, "its type is 'block'"),
        ({"type": "char"}, "its type is 'char'"),
        ({"encoding": "zrl"}, "its encoding is 'zrl'"),
        ({"endian": None}, "its endian is ''"),
        ({"space": "outer"}, "its 'space' is 'outer'"),
        ({"space_origin": "1 2 3"}, "its 'space origin' is '1 2 3'"),
        ({"space_origin": "(1,2)"}, "'space origin' has 2 numbers"),
        ({"space_directions": "(0,2,0) (-2,0,0.5)"}, "2 'space directions' for 3 axes"),
        ({"space_directions": "(0,2,0) (-2,0,0.5) x"}, "'space directions' are"),
        ({"space_directions": "(0,2,0) (-2,0,0.5) (0,0)"}, "differ in length"),
        ({"space_directions": "(0,2,0) (-2,0,inf) (0,0,1)"}, "spacing"),
        ({"spacings": "1 2 3"}, "both a direction with a length and a spacing"),
        ({"kinds": "domain domain dmain"}, "'dmain' in its kinds"),
        ({"kinds": "domain"}, "1 kinds for 3 axes"),
        ({"spcings": "1 2 3"}, "not an NRRD field"),
        ({"byte_skip": -2}, "byte skip"),
        ({"byte_skip": 10**15}, "could be read"),
        ({"line_skip": 10**15}, "could be read"),
        ({**NO_SPACE, "kinds": "RGB-color domain domain", "spacings": "nan 1 1"}, "a 2D image"),
        ({"data_file": "s%09d.raw 0 99999999 1"}, "counts 100000000 files"),
    ],
)
def test_an_nrrd_header_that_cannot_be_is_refused_with_what_is_wrong(fields, says, tmp_path):
    path = nrrd(
        tmp_path / "a.nrrd", **{name.replace(" ", "_"): value for name, value in fields.items()}
    )
    with pytest.raises(InputError, match=says):
        read_image(path)
    inspect_file(path)


@pytest.mark.parametrize("make", [nrrd, meta])
def test_a_bomb_behind_a_small_header_is_not_unpacked(make, tmp_path):
    blown = zlib.compressobj(1, zlib.DEFLATED, 31 if make is nrrd else 15)
    raw = (
        blown.compress(RAW)
        + b"".join(blown.compress(bytes(1 << 20)) for _ in range(40))
        + blown.flush()
    )
    fields = {"encoding": "gzip"} if make is nrrd else {"CompressedData": True}
    path = make(tmp_path / ("a.nrrd" if make is nrrd else "a.mha"), raw, **fields)
    with pytest.warns(UnreadBytes, match="more than 16 MiB follow"):
        np.testing.assert_array_equal(read_image(path).values, VALUES)
    big = {"sizes": "60000 60000 60000"} if make is nrrd else {"DimSize": "60000 60000 60000"}
    with pytest.raises(TooLargeError):
        read_image(make(path, raw, **fields, **big))


def test_bytes_that_no_field_announces_are_said(tmp_path):
    with pytest.warns(UnreadBytes, match="holds 7 bytes more than its header announces"):
        read_image(meta(tmp_path / "a.mha", RAW + b"7 bytes"))


@pytest.mark.parametrize("make", [nrrd, meta])
@pytest.mark.parametrize("way", ["absolute", "above", "link", "list", "pattern"])
def test_a_data_file_outside_the_folder_is_opened_only_if_the_caller_says_so(
    make, way, tmp_path, monkeypatch
):
    inside = tmp_path / "here"
    inside.mkdir()
    (tmp_path / "x1.raw").write_bytes(RAW)
    name = {
        "absolute": str(tmp_path / "x1.raw"),
        "above": "../x1.raw",
        "link": "link.raw",
        "list": "LIST",
    }.get(way)
    if way == "pattern":
        name = "../x%d.raw 1 1 1"
    if way == "link":
        (inside / "link.raw").symlink_to(tmp_path / "x1.raw")
    listed = b"../x1.raw\n" if way == "list" else b""
    if make is nrrd:
        path = nrrd(inside / "a.nhdr", listed, end="", data_file=name)
    else:
        name = "LIST 3" if way == "list" else name
        path = meta(inside / "a.mhd", listed, ElementDataFile=name)
    with pytest.raises(InputError, match=f"outside its own folder .*{ALLOW_OUTSIDE}=1"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, allow_outside=True).values, VALUES)
    monkeypatch.setenv(ALLOW_OUTSIDE, "1")
    np.testing.assert_array_equal(read_image(path).values, VALUES)


@pytest.mark.parametrize("make", [nrrd, meta])
def test_a_data_file_that_is_a_pipe_or_the_header_itself_is_refused(make, tmp_path):
    path = tmp_path / ("a.nhdr" if make is nrrd else "a.mhd")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    for name, says in (("pipe", "named pipe"), (path.name, "names itself"), (".", "a folder")):
        if name == "pipe" and not hasattr(os, "mkfifo"):
            continue
        with pytest.raises(InputError, match=says):
            read_image(
                make(
                    path,
                    b"",
                    **({"data_file": name} if make is nrrd else {"ElementDataFile": name}),
                )
            )


def test_a_linked_header_finds_the_data_beside_its_target(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x.raw").write_bytes(RAW)
    nrrd(tmp_path / "store" / "a.nhdr", b"", end="", data_file="x.raw")
    (tmp_path / "x.raw").symlink_to(tmp_path / "store" / "x.raw")
    (tmp_path / "a.nhdr").symlink_to(tmp_path / "store" / "a.nhdr")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nhdr").values, VALUES)


def test_labels_and_displacements_are_known_by_the_header(tmp_path):
    path = nrrd(tmp_path / "a.nrrd")
    assert inspect_file(path).kind == "image"
    path.write_bytes(path.read_bytes().replace(b"\n\n", b"\nSegment0_ID:=Segment_1\n\n", 1))
    assert inspect_file(path).kind == "labels"
    vectors = np.zeros((120, 3), "<f4").tobytes()
    field = nrrd(
        tmp_path / "b.nrrd",
        vectors,
        **FOUR,
        sizes="3 6 5 4",
        type="float",
        kinds="vector domain domain domain",
    )
    assert inspect_file(field).kind == "displacement"
    assert (
        inspect_file(
            meta(tmp_path / "b.mha", vectors, ElementType="MET_FLOAT", ElementNumberOfChannels=3)
        ).kind
        == "displacement"
    )


def test_damaged_headers_are_refused_or_read_and_never_break_anything(tmp_path):
    dice = random.Random(1)
    words = [
        "-1",
        "0",
        "99999999",
        "1e308",
        "nan",
        "",
        "x",
        "1,5",
        "()",
        "%s%n",
        "LIST",
        "A" * 5000,
        "\x00",
        "1 " * 300,
    ]
    refused = 0
    for number in range(400):
        path = (nrrd if number % 2 else meta)(tmp_path / ("a.nrrd" if number % 2 else "a.mha"))
        head, mark, tail = path.read_bytes().partition(b"\n\n" if number % 2 else b"LOCAL\n")
        lines = head.decode().split("\n")
        for _ in range(dice.choice([1, 1, 2])):
            line = dice.randrange(len(lines))
            parts = lines[line].split(" ")
            parts[dice.randrange(len(parts))] = dice.choice(words)
            lines[line] = " ".join(parts)
        path.write_bytes("\n".join(lines).encode() + mark + tail)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inspect_file(path)
            try:
                read_image(path, channel=0)
            except InputError as error:
                assert path.name in str(error)
                refused += 1
    assert 100 < refused < 400


COMMA = """
import locale, sys
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
assert locale.localeconv()["decimal_point"] == ","
import numpy as np
from napari_shmoareg.geometry import DisplacementField, Grid, Transform
from napari_shmoareg.io import read_image, read_transform, write_transform
for name in ("a.nrrd", "a.mha"):
    print(read_image(name).grid.spacing)
affine = np.diag([1.25, 0.5, 0.75, 1.0])
affine[:3, 3] = (0.25, -7.5, 3.125)
field = DisplacementField(np.full((4, 3, 2, 3), 0.625, np.float32), Grid((4, 3, 2), np.diag([1.5, 1.25, 0.5, 1.0])))
for name in ("t.tfm", "t.h5"):
    write_transform(Transform(affine, field), name)
    back = read_transform(name)
    assert np.array_equal(back.affine, affine) and np.array_equal(back.field.vectors, field.vectors), name
    assert back.field.grid.spacing == (1.5, 1.25, 0.5), name
    if name == "t.tfm":
        assert "1.25" in open(name, encoding="utf-8").read()
assert locale.localeconv()["decimal_point"] == ","
"""


@pytest.mark.slow
def test_numbers_keep_their_point_where_the_desktop_writes_a_comma(tmp_path):
    if shutil.which("localedef") is None:
        pytest.skip("localedef, which makes the locale of this test, is not here")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"],
        capture_output=True,
        check=False,
    )
    if not (tmp_path / "de_DE.UTF-8").is_dir():
        pytest.skip(f"localedef made no German locale: {made.stderr.decode()[:200]}")
    nrrd(tmp_path / "a.nrrd", space_directions="(1.5,0,0) (0,0.25,0) (0,0,2.75)")
    meta(tmp_path / "a.mha", ElementSpacing="1.5 0.25 2.75")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {
        "LOCPATH": str(tmp_path),
        "LC_ALL": "de_DE.UTF-8",
        "PYTHONPATH": root,
    }
    ended = subprocess.run(
        [sys.executable, "-c", COMMA],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "(1.5, 0.25, 2.75)\n" * 2
