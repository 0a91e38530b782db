"""Malformed NIfTI, MGH, NRRD and MetaImage files, compressed streams, and oddities of file
systems.
"""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracles
from corpus import Found, Malformed, Truth, Warned, damaged, misspelt, put, refused, volume, written

SHAPE = (7, 6, 5)
VALUES = volume(SHAPE, np.int16)
# a multiple of a half turn
AFFINE = np.array([[-1.5, 0, 0, 20], [0, 0, 2.5, -30], [0, -0.75, 0, 12], [0, 0, 0, 1]])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
FOUND = Found(VALUES, AFFINE)


def nifti(version: int = 1, order: str = "<", **fields: object) -> bytes:
    """A whole file by nibabel, with other numbers in some fields of its header."""
    import nibabel

    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(VALUES.astype(VALUES.dtype.newbyteorder(order)), AFFINE)
    image.set_sform(AFFINE, code=2)
    image.set_qform(AFFINE, code=2)
    image.header.set_xyzt_units("mm")
    raw = image.to_bytes()
    if order == ">":
        raw = kind(VALUES, AFFINE, image.header.as_byteswapped(">")).to_bytes()
    header = type(image.header)(raw[: 348 if version == 1 else 540], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + raw[len(header.binaryblock) :]


def _nifti() -> Iterator[Malformed]:
    faults = {
        "dim": [
            [0] * 8,
            [8] + [1] * 7,
            [-1] * 8,
            [3, 7, 6, -5, 1, 1, 1, 1],
            [3, 32767, 32767, 32767, 1, 1, 1, 1],
            [7, 7, 6, 5, 32767, 32767, 32767, 32767],
            [3, 7, 6, 0, 1, 1, 1, 1],
            [2, 7, 30, 1, 1, 1, 1, 1],
            [4, 7, 6, 1, 5, 1, 1, 1],
            [5, 7, 6, 5, 1, 3, 1, 1],
            [3, 7, 6, 4, 1, 1, 1, 1],
        ],
        "datatype": [0, 1, 32, 128, 1792, 2304, 3000, -1, 64, 2],
        "bitpix": [8, 0, -16],
        "pixdim": [
            [1, 0, 0.75, 2.5, 0, 0, 0, 0],
            [1, np.nan, 1, 1, 0, 0, 0, 0],
            [0, 1.5, 0.75, 9, 0, 0, 0, 0],
        ],
        "vox_offset": [0, 100, -1, np.nan, np.inf, 1e30, 353.5, 347, 400],
        "scl_slope": [np.inf, 2, np.nan, 1e-30],
        "xyzt_units": [4, 5, 7, 1, 3],
        "qform_code": [-1, 0, 7],
        "sform_code": [0, -3],
        "intent_code": [3000, 3006, 1007, 2003],
        "quatern_b": [5, np.nan, 0.3],
        "srow_x": [[0, 0, 0, 0], [np.nan] * 4, [1e30, 0, 0, 0], [0, 0, 0.1, 9]],
        "srow_z": [[-1.5, 0, 0, 20]],
        "qoffset_x": [np.nan, 500],
        "magic": [b"ni1", b"", b"n+9"],
    }
    truth = Truth(oracles.nifti, FOUND)
    for version in (1, 2):
        for field, values in faults.items():
            for n, value in enumerate(values):
                if version == 2 and (
                    field == "magic" or (field == "vox_offset" and n in (3, 4, 5, 6))
                ):
                    continue
                try:
                    raw = nifti(version, **{field: value})
                except (ValueError, OverflowError):
                    continue
                yield Malformed(
                    f"NIfTI-{version}", f"{field} {n}", "image", written("a.nii", raw), truth
                )
    both = {
        "no codes": {"qform_code": 0, "sform_code": 0},
        "quaternion beyond 1": {"sform_code": 0, "quatern_b": 0.8, "quatern_c": 0.8},
        "zero spacing": {"sform_code": 0, "pixdim": [1, 0, 1, 1, 0, 0, 0, 0]},
        "negative spacing": {"sform_code": 0, "pixdim": [1, -1.5, 1, 1, 0, 0, 0, 0]},
        "half scaling": {"scl_slope": np.nan, "scl_inter": np.nan},
    }
    for name, fields in both.items():
        yield Malformed("NIfTI-1", name, "image", written("a.nii", nifti(**fields)), truth)
    for order in "<>":
        read = Malformed(
            "NIfTI-1", f"whole, {order}", "image", written("a.nii", nifti(1, order)), FOUND
        )
        yield read
    yield Malformed("NIfTI-2", "whole", "image", written("a.nii", nifti(2)), FOUND)
    raw = nifti(1)
    for name, new in damaged(raw, 1, 60, slice(0, 352)):
        yield Malformed("NIfTI-1", f"header, {name}", "image", written("a.nii", new), truth)
    for name, new in damaged(raw, 2, 12, slice(352, None)):
        yield Malformed("NIfTI-1", f"voxels, {name}", "image", written("a.nii", new), truth)
    for name, new in damaged(nifti(2), 3, 30, slice(0, 544)):
        yield Malformed("NIfTI-2", f"header, {name}", "image", written("a.nii", new), truth)


def _streams() -> Iterator[Malformed]:
    raw, truth = nifti(1), Truth(oracles.nifti, FOUND)
    whole = gzip.compress(raw, mtime=0)
    zeros = gzip.compress(raw + bytes(24 << 20), 1, mtime=0)
    for name, content, outcome in (
        ("zeros without end", zeros, Warned(FOUND, ("more compressed content",))),
        ("two members", gzip.compress(raw[:400]) + gzip.compress(raw[400:]), FOUND),
        ("bytes behind", whole + b"rubbish", Warned(FOUND, ("other bytes",))),
        ("zeros behind", whole + bytes(512), FOUND),
        ("twice", gzip.compress(whole), refused("compressed twice")),
        ("not compressed", raw, refused("not compressed")),
        ("bzip2", bz2.compress(raw), refused("bzip2")),
        ("no end", whole[:-4], refused("cut short")),
        ("wrong checksum", whole[:-8] + bytes(8), refused()),
        ("empty stream", gzip.compress(b""), refused()),
        ("head only", whole[:10], refused()),
        ("text", b"<html>404</html>", refused()),
    ):
        yield Malformed("stream", name, "image", written("a.nii.gz", content), outcome)
    yield Malformed(
        "stream", "gzip named .nii", "image", written("a.nii", whole), refused("rename")
    )
    for name, new in damaged(whole, 4, 30):
        yield Malformed("stream", f"gzip, {name}", "image", written("a.nii.gz", new), truth)
    for coder, make in (("gzip", gzip.compress), ("bzip2", bz2.compress)):
        stream = make(VALUES.tobytes("F"))
        head = nrrd(encoding=coder)
        yield Malformed("stream", f"NRRD {coder}", "image", written("a.nrrd", head + stream), FOUND)
        for name, new in damaged(stream, 5, 10):
            write = written("a.nrrd", head + new)
            yield Malformed(
                "stream", f"NRRD {coder}, {name}", "image", write, Truth(oracles.nrrd, FOUND)
            )
    for name, new in damaged(zlib.compress(VALUES.tobytes("F")), 6, 10):
        write = written("a.mha", meta(CompressedData="True") + new)
        yield Malformed(
            "stream", f"MetaImage zlib, {name}", "image", write, Truth(oracles.metaimage, FOUND)
        )


def mgh(**fields: bytes) -> bytes:
    numbers = np.linalg.norm(AFFINE[:3, :3], axis=0)
    turn = (AFFINE[:3, :3] / numbers).T.ravel()
    middle = AFFINE[:3] @ [*(np.array(SHAPE) / 2), 1]
    head = struct.pack(">7ih15f", 1, *SHAPE, 1, 4, 0, 1, *numbers, *turn, *middle)
    return head.ljust(284, b"\0") + VALUES.astype(">i2").tobytes("F")


def _mgh() -> Iterator[Malformed]:
    raw, truth = mgh(), Truth(oracles.mgh, FOUND)
    yield Malformed("MGH", "whole", "image", written("a.mgh", raw), FOUND)
    for name, at, new in (
        ("version 2", 0, struct.pack(">i", 2)),
        ("negative size", 4, struct.pack(">i", -7)),
        ("huge size", 4, struct.pack(">3i", *[2**31 - 1] * 3)),
        ("no size", 4, struct.pack(">i", 0)),
        ("type 2", 20, struct.pack(">i", 2)),
        ("no place", 28, struct.pack(">h", 0)),
        ("spacing 0", 30, struct.pack(">f", 0)),
        ("spacing NaN", 30, struct.pack(">f", np.nan)),
        ("direction 0", 42, bytes(12)),
        ("direction 2", 42, struct.pack(">f", 2)),
        ("place infinite", 78, struct.pack(">f", np.inf)),
        ("many frames", 16, struct.pack(">i", 10**9)),
    ):
        yield Malformed("MGH", name, "image", written("a.mgh", put(raw, at, new)), truth)
    for name, new in damaged(raw, 7, 30, slice(0, 90)):
        yield Malformed("MGH", name, "image", written("a.mgh", new), truth)
    for name, new in damaged(gzip.compress(raw, mtime=0), 8, 6):
        yield Malformed("MGH", f"compressed, {name}", "image", written("a.mgz", new), truth)


def nrrd(**fields: str) -> bytes:
    """A header; a field given as "" is left out."""
    vectors = " ".join(f"({','.join(f'{v:g}' for v in column)})" for column in LPS[:3, :3].T)
    known = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "7 6 5",
        "space directions": vectors,
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": f"({','.join(f'{v:g}' for v in LPS[:3, 3])})",
    } | {name.replace("_", " "): value for name, value in fields.items()}
    return ("NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in known.items() if v) + "\n").encode()


def _nrrd() -> Iterator[Malformed]:
    data, truth = VALUES.tobytes("F"), Truth(oracles.nrrd, FOUND)
    yield Malformed("NRRD", "whole", "image", written("a.nrrd", nrrd() + data), FOUND)
    yield Malformed(
        "NRRD",
        "micrometres",
        "image",
        written("a.nrrd", nrrd(space_units='"um" "um" "um"') + data),
        truth,
    )
    for field, values in {
        "dimension": ["0", "-1", "99999999", "2", "4", "x"],
        "sizes": ["7 6", "0 6 5", "-7 6 5", "9" * 30 + " 1 1", "7 6 4"],
        "type": ["block", "char", "quux", "double", "uchar"],
        "endian": ["", "middle", "big"],
        "encoding": ["", "gzip", "zip", "hex", "text", "bzip2"],
        "space": ["", "scanner-xyz", "qqq", "RAS", "LPST"],
        "space_origin": ["", "(1,2)", "(nan,0,0)", "(1e300,0,0)", "none", "(1,5,2,5,3)"],
        "space_directions": [
            "",
            "(1,0,0) (0,1,0)",
            "(0,0,0) (0,1,0) (0,0,1)",
            "(1,0,0) (1,0,0) (0,0,1)",
            "(nan,0,0) (0,1,0) (0,0,1)",
            "none (1,0,0) (0,1,0)",
            "(1,0) (0,1) (0,0)",
            "(1,5,0,0) (0,1,0) (0,0,1)",
            "(1e300,0,0) (0,1,0) (0,0,1)",
        ],
        "kinds": ["domain", "vector domain domain", "a b c"],
        "line_skip": ["-1", "1", "99999999999999999999"],
        "byte_skip": ["-2", "4", "99999999999"],
        "spacings": ["1 1 1", "nan nan nan", "1 1"],
        "space_units": ['"parsec" "mm" "mm"', '"mm"', '"mm" "um" "mm"'],
        "quux": ["1"],
        "data_file": [
            "nothere.raw",
            "/etc/passwd",
            "../x",
            "a.nrrd",
            "LIST",
            "%03d 1 99999999999 1",
            "/dev/zero",
            "a\0b",
        ],
    }.items():
        for value in values:
            write = written("a.nrrd", nrrd(**{field: value}) + data)
            yield Malformed("NRRD", f"{field} {value[:30]}", "image", write, truth)
    header = nrrd().decode()
    for name, text in misspelt(header, 9, 60):
        yield Malformed("NRRD", name, "image", written("a.nrrd", text.encode() + data), truth)
    for name, new in damaged(header.encode() + data, 10, 30):
        yield Malformed("NRRD", name, "image", written("a.nrrd", new), truth)
    for name, content in (
        ("no end of a line", b"NRRD0004\n" + b"x" * (3 << 20)),
        ("words", b"NRRD" * 9),
    ):
        yield Malformed("NRRD", name, "image", written("a.nrrd", content), refused())
    far = nrrd(data_file="a.raw")
    yield Malformed(
        "NRRD", "data beside", "image", written("a.nhdr", far, **{"a.raw": data}), FOUND
    )
    short = written("a.nhdr", far, **{"a.raw": data[:-1]})
    yield Malformed("NRRD", "data beside, short", "image", short, refused("cut short"))

    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "a.raw")
        return written("a.nhdr", far)(folder)

    yield Malformed("NRRD", "a pipe as data", "image", pipe, refused("pipe"))


def meta(**fields: str) -> bytes:
    """A header; a field given as "" is left out."""
    numbers = np.linalg.norm(LPS[:3, :3], axis=0)
    known = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(f"{v:g}" for v in (LPS[:3, :3] / numbers).T.ravel()),
        "Offset": " ".join(f"{v:g}" for v in LPS[:3, 3]),
        "ElementSpacing": " ".join(f"{v:g}" for v in numbers),
        "DimSize": "7 6 5",
        "ElementType": "MET_SHORT",
    }
    last = {"ElementDataFile": fields.pop("ElementDataFile", "LOCAL")}
    return "".join(f"{k} = {v}\n" for k, v in ((known | fields) | last).items() if v).encode()


def _meta() -> Iterator[Malformed]:
    data, truth = VALUES.tobytes("F"), Truth(oracles.metaimage, FOUND)
    yield Malformed("MetaImage", "whole", "image", written("a.mha", meta() + data), FOUND)
    for field, values in {
        "NDims": ["-1", "0", "2", "4", "100", "99999999", "2147483648", "x", ""],
        "DimSize": ["7 6", "-7 6 5", "0 6 5", "99999 99999 99999", "7 6 4", "7 6 5 9"],
        "ElementType": ["MET_QUUX", "", "short", "MET_DOUBLE", "MET_UCHAR", "MET_LONG_LONG"],
        "ElementNumberOfChannels": ["0", "-1", "3", "999999999"],
        "ElementSpacing": ["", "0 1 1", "nan 1 1", "1,5 1 1", "1e300 1 1"],
        "TransformMatrix": [
            "",
            "1 0 0 0 1 0",
            "0 0 0 0 0 0 0 0 0",
            "2 0 0 0 2 0 0 0 2",
            "nan 0 0 0 1 0 0 0 1",
            "1 0 0 1 0 0 0 0 1",
        ],
        "Offset": ["", "1 2", "nan 0 0", "1e300 0 0"],
        "HeaderSize": ["-1", "-2", "5", "99999999999"],
        "BinaryData": ["False", "maybe"],
        "BinaryDataByteOrderMSB": ["x"],
        "CompressedData": ["True"],
        "ObjectType": ["Tube"],
        "DistanceUnits": ["parsec", "um"],
        "ElementToIntensityFunctionSlope": ["2"],
        "ElementDataFile": [
            "nothere.raw",
            "/etc/passwd",
            "../x",
            "a.mha",
            "LIST",
            "LIST 9",
            "%03d.raw 1 999999999 1",
            "/dev/zero",
            "a\0b",
            "",
        ],
    }.items():
        for value in values:
            write = written("a.mha", meta(**{field: value}) + data)
            yield Malformed("MetaImage", f"{field} {value[:30]}", "image", write, truth)
    header = meta().decode()
    for name, text in misspelt(header, 11, 60):
        yield Malformed("MetaImage", name, "image", written("a.mha", text.encode() + data), truth)
    for name, new in damaged(header.encode() + data, 12, 30):
        yield Malformed("MetaImage", name, "image", written("a.mha", new), truth)
    beside = written("a.mhd", meta(ElementDataFile="a.raw"), **{"a.raw": data})
    yield Malformed("MetaImage", "data beside", "image", beside, FOUND)
    long = written("a.mhd", meta(ElementDataFile="a.raw"), **{"a.raw": data + bytes(9)})
    yield Malformed("MetaImage", "data beside, long", "image", long, Warned(FOUND, ("bytes more",)))


def _file_system() -> Iterator[Malformed]:
    raw = nifti(1)

    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "a.nii")
        return folder / "a.nii"

    def link(to: str, name: str = "a.nii"):
        def write(folder: Path) -> Path:
            (folder / name).symlink_to(to)
            return folder / name

        return write

    def a_folder(folder: Path) -> Path:
        (folder / "a.nii").mkdir()
        return folder / "a.nii"

    def odd_bytes(folder: Path) -> Path:
        return written(os.fsdecode(b"sc\xe4n.nii"), raw)(folder)

    def given(text: str):
        return lambda folder: text

    for name, write, outcome in (
        ("a pipe", pipe, refused("pipe")),
        ("a link to a device", link("/dev/zero"), refused("device")),
        ("a link to nothing", link("gone.nii"), refused()),
        ("a link to itself", link("a.nii"), refused()),
        ("a folder named as an image", a_folder, refused()),
        ("no UTF-8 in its name", odd_bytes, FOUND),
        ("no such user", given("~nosuchuser/a.nii"), refused("~nosuchuser")),
        ("NUL", given("a\0b.nii"), refused("NUL")),
        ("a long name", given("/tmp/" + "x" * 5000 + ".nii"), refused()),
        ("a name without end", given("/".join(["x" * 250] * 40) + ".nii"), refused()),
        ("no name", given(""), refused()),
        ("a blank", given(" "), refused()),
        ("capitals", written("a.Nii.GZ", gzip.compress(raw)), FOUND),
        ("another ending", written("a.nii.zip", raw), refused("type")),
        ("no ending", written("a", raw), refused("type")),
        ("nothing in it", written("a.nii", b""), refused("empty")),
        ("an emoji", written("\U0001f9e0.nii", raw), FOUND),
        ("a series of a file", lambda folder: f"{written('a.nii', raw)(folder)}#1.2", refused("#")),
    ):
        for door in ("image", "pair"):
            found = (
                Found([outcome.values] * 2, outcome.affine)
                if door == "pair" and outcome is FOUND
                else outcome
            )
            yield Malformed("file system", f"{name}, {door}", door, write, _pair(found))


def _pair(outcome):
    """As the door of pairs gives it: both images in one array."""
    if isinstance(outcome, Found) and isinstance(outcome.values, list):
        return Found(np.stack(outcome.values), outcome.affine)
    return outcome


def all_images() -> Iterator[Malformed]:
    for make in (_nifti, _streams, _mgh, _nrrd, _meta, _file_system):
        yield from make()
