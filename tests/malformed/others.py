"""Malformed transforms, landmarks, lists, registration folders, runs, evaluations and weights."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracles
from corpus import Found, Malformed, Truth, Warned, damaged, misspelt, put, refused, written
from images import AFFINE, nifti

_WHOLE: dict[str, Path] = {}  # the files to damage, made by `prepare`
_HELD_OR_NOT = Truth(lambda path: Found("held"))
_DEEP = ("[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000)
_NO_JSON = (
    *_DEEP,
    "",
    "{",
    "3",
    "null",
    '"a"',
    "\0",
    "[1]",
    "9" * 5000,
    '{"a": NaN}',
    "\ufeff{}",
    "\udcff\udcfe{",
)


def prepare(folder: Path) -> None:
    """A registration, weights and a transform that are whole, in `folder`."""
    import torch

    from napari_shmoareg.geometry import Grid, Volume, VolumePair
    from napari_shmoareg.io import save_network, write_registration, write_transform
    from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
    from napari_shmoareg.registration.register import register

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = SHMoAReg(SHMoARegConfig.preset("tiny")).eval()
    draw = np.random.default_rng(0)
    grid = Grid((16, 14, 12), np.diag([3.0, 3, 3, 1]))
    images = [
        Volume(draw.random(grid.shape).astype(np.float32), grid, name)
        for name in ("moving", "fixed")
    ]
    done = register(VolumePair(*images), network, affine="none", size=16, device="cpu")
    _WHOLE["scene"] = folder / "whole"
    write_registration(done, _WHOLE["scene"], weights="tiny", figures=False)
    _WHOLE["weights"] = folder / "whole.safetensors"
    save_network(network, _WHOLE["weights"], card={})
    _WHOLE["h5"] = folder / "whole.h5"
    write_transform(done.transform, _WHOLE["h5"])


def _field(**fields: Any) -> bytes:
    """A displacement field as ITK writes it."""
    import nibabel

    vectors = np.random.default_rng(3).normal(0, 2, (7, 6, 5, 1, 3)).astype(np.float32)
    image = nibabel.Nifti1Image(vectors, AFFINE)
    image.header.set_intent("vector")
    raw = image.to_bytes()
    header = nibabel.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + raw[348:]


def _field_truth(path: Path) -> Found | None:
    found = oracles.nifti(path)
    intent = struct.unpack_from("<h", path.read_bytes(), 68)[0]
    if found is None or intent not in (1006, 1007) or not np.isfinite(found.values).all():
        return None
    return Found(found.values[:, :, :, 0] * ((-1, -1, 1) if intent == 1007 else 1), found.affine)


_TFM = """#Insight Transform File V1.0
#Transform 0
Transform: AffineTransform_double_3_3
Parameters: 1 0.1 0 -0.1 1 0 0 0 1 4 5 6
FixedParameters: 0 0 0
"""
_MATRIX = np.array([[1, 0.1, 0], [-0.1, 1, 0], [0, 0, 1]])
_PROBES = np.array([[0.0, 0, 0], [5, -3, 2], [-12, -8, 4], [3, 9, -6]]) * (-1, -1, 1)
_MAPPED = Found((_PROBES @ _MATRIX.T + (4, 5, 6)) * (-1, -1, 1))


def _transforms() -> Iterator[Malformed]:
    truth = Truth(_field_truth)
    for name, fields in (
        ("whole", {}),
        ("RAS", {"intent_code": 1006}),
        ("no intent", {"intent_code": 0}),
        ("two components", {"dim": [5, 7, 6, 5, 1, 2, 1, 1]}),
        ("four axes", {"dim": [4, 7, 6, 5, 3, 1, 1, 1]}),
        ("time", {"dim": [5, 7, 3, 5, 2, 3, 1, 1]}),
        ("infinite scaling", {"scl_slope": np.inf}),
        ("integers", {"datatype": 8}),
        ("no place", {"sform_code": 0, "qform_code": 0}),
    ):
        yield Malformed(
            "transform", f"field, {name}", "transform", written("a.nii", _field(**fields)), truth
        )
    raw = _field()
    for name, new in (("NaN", np.nan), ("infinity", np.inf), ("1e38", 1e38)):
        content = put(raw, 400, struct.pack("<f", new))
        outcome = refused() if name != "1e38" else truth
        yield Malformed(
            "transform", f"field with {name}", "transform", written("a.nii", content), outcome
        )
    for name, new in damaged(raw, 21, 25, slice(0, 352)):
        yield Malformed("transform", f"field, {name}", "transform", written("a.nii", new), truth)
    image = written("a.nii", nifti(1))
    yield Malformed("transform", "an image", "transform", image, refused("intent"))
    yield Malformed("transform", "tfm", "transform", written("a.tfm", _TFM), _MAPPED)
    for name, text in (
        ("NaN", _TFM.replace("0.1", "nan")),
        ("singular", _TFM.replace("1 0.1 0 -0.1 1 0", "0 0 0 0 0 0")),
        ("few numbers", _TFM.replace(" 4 5 6", "")),
        ("another kind", _TFM.replace("Affine", "Quux")),
        (
            "2D",
            (
                "#Insight Transform File V1.0\nTransform: AffineTransform_double_2_2\n"
                "Parameters: 1 0 0 1 0 0\nFixedParameters: 0 0\n"
            ),
        ),
        ("words", "hello\n"),
    ):
        yield Malformed("transform", f"tfm, {name}", "transform", written("a.tfm", text), refused())
    comma = written("a.tfm", _TFM.replace("0.1", "0,1"))
    yield Malformed("transform", "tfm, decimal comma", "transform", comma, refused())
    yield Malformed(
        "transform", "FSL", "transform", written("a.mat", "1 0 0 0\n0 1 0 0\n"), refused()
    )
    for name, change in (
        ("cut", lambda raw: raw[: len(raw) // 2]),
        ("no superblock", lambda raw: raw[:9] + bytes(80) + raw[89:]),
        ("head only", lambda raw: raw[:8]),
    ):

        def write(folder: Path, change: Callable[[bytes], bytes] = change) -> Path:
            return written("a.h5", change(_WHOLE["h5"].read_bytes()))(folder)

        yield Malformed("transform", f"h5, {name}", "transform", write, refused())


_PAIRS = "# landmarks, mm, LPS\nfixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n" + "".join(
    f"{n}.5,{2 * n},-{n}.25,{n + 1},{n}.75,3e1\n" for n in range(6)
)
_POINTS = np.array([[1.5, 2, 3], [4, 5.5, 6]])


def _landmarks() -> Iterator[Malformed]:
    kind, truth = "landmarks", Truth(oracles.pairs_csv, _numbers_of(_PAIRS))
    yield Malformed(kind, "whole", "landmarks", written("a.csv", _PAIRS), _numbers_of(_PAIRS))
    comma = "fixed_x;fixed_y;fixed_z;moving_x;moving_y;moving_z\n1,5;2,25;3;4;5,5;6\n"
    read = Found(np.array([[-1.5, -2.25, 3, -4, -5.5, 6]]))
    yield Malformed(kind, "decimal commas", "landmarks", written("a.csv", comma), read)
    for name, text in (
        ("commas everywhere", comma.replace(";", ",")),
        ("NaN", _PAIRS.replace("2,", "nan,", 1)),
        ("infinite", _PAIRS + "inf,0,0,0,0,0\n"),
        ("1e400", _PAIRS + "1e400,0,0,0,0,0\n"),
        ("five", "1,2,3,4,5\n"),
        ("seven", "1,2,3,4,5,6,7\n"),
        ("nothing", ""),
        ("headings only", _PAIRS[:75]),
        ("words", "hello\nyou\n"),
        ("NUL", "1,2,3,4,5,6\n\0\n"),
        ("a huge cell", "x" * 300_000 + ",2,3,4,5,6\n"),
        ("LPS and RAS", "# RAS\n" + _PAIRS),
        ("voxels", "# IJK\n1,2,3,4,5,6\n"),
        ("thousands", "1,000;2;3;4;5;6\n1.5;2;3;4;5;6\n"),
        ("quotes", '1,2,3,4,5,"6\n'),
        ("hexadecimal", "0x1,2,3,4,5,6\n"),
        ("underscores", "1_0,2,3,4,5,6\n"),
    ):
        yield Malformed(kind, name, "landmarks", written("a.csv", text), refused())
    for name, text in misspelt(_PAIRS, 22, 40):
        yield Malformed(kind, name, "landmarks", written("a.csv", text), truth)
    for name, new in damaged(_PAIRS.encode(), 23, 30):
        yield Malformed(kind, name, "landmarks", written("a.csv", new), truth)
    yield from _slicer()


def _numbers_of(text: str) -> Found:
    rows = [[float(cell) for cell in line.split(",")] for line in text.splitlines()[2:]]
    return Found(np.array(rows) * [-1, -1, 1, -1, -1, 1])


def _slicer() -> Iterator[Malformed]:
    def markups(points: Any = None, **more: Any) -> str:
        listed = [{"label": str(n), "position": row} for n, row in enumerate(_POINTS.tolist())]
        one = {
            "type": "Fiducial",
            "coordinateSystem": "LPS",
            "controlPoints": listed if points is None else points,
        }
        return json.dumps({"markups": [one | more]}, indent=1)

    kind, truth = "points", Truth(oracles.markups, Found(_POINTS * (-1, -1, 1)))
    yield Malformed(
        kind, "whole", "points", written("a.mrk.json", markups()), Found(_POINTS * (-1, -1, 1))
    )
    for name, text in (
        ("NaN", markups([{"position": [float("nan"), 0, 0]}])),
        ("infinite", markups([{"position": [1e999, 0, 0]}])),
        ("two numbers", markups([{"position": [1, 2]}])),
        ("words", markups([{"position": ["1", "2", "3"]}])),
        ("true", markups([{"position": [True, 1, 1]}])),
        ("no points", markups([])),
        ("an object", markups({"a": 1})),
        ("no objects", markups([3, 4])),
        ("no position", markups([{}])),
        ("voxels", markups(coordinateSystem="IJK")),
        ("metres", markups(coordinateUnits="m")),
        ("huge", markups([{"position": [10**400, 0, 0]}])),
        ("nested", markups([{"position": [[1, 2, 3]]}])),
        *((f"no JSON {n}", text) for n, text in enumerate(_NO_JSON)),
    ):
        yield Malformed(kind, name, "points", written("a.mrk.json", text), refused())
    not_placed = markups(
        [{"position": [1, 2, 3]}, {"position": [0, 0, 0], "positionStatus": "undefined"}]
    )
    warned = Warned(Found(np.array([[-1.0, -2, 3]])), ("left out",))
    yield Malformed(kind, "not placed", "points", written("a.mrk.json", not_placed), warned)
    for name, text in misspelt(markups(), 24, 25):
        yield Malformed(kind, name, "points", written("a.mrk.json", text), truth)
    fcsv = (
        "# Markups fiducial file version = 4.11\n# CoordinateSystem = {}\n# columns ="
        " id,x,y,z,ow\n1,1.5,2,3,0\n"
    )
    for frame, outcome in (
        ("LPS", Found(np.array([[-1.5, -2, 3]]))),
        ("0", Found(np.array([[1.5, 2, 3]]))),
        ("1", Found(np.array([[-1.5, -2, 3]]))),
        ("2", refused("IJK")),
        ("quux", refused()),
        ("RAS\n# CoordinateSystem = LPS", refused()),
    ):
        yield Malformed(
            kind, f"fcsv {frame}", "points", written("a.fcsv", fcsv.format(frame)), outcome
        )
    for cell in ("nan", "inf", "", "x", "1e999", "1,5", "0x1"):
        text = fcsv.format("LPS").replace("1.5", cell)
        yield Malformed(kind, f"fcsv with '{cell}'", "points", written("a.fcsv", text), refused())


def _listed(path: Path) -> Found:
    """A pair of a folder, which may hold a DICOM series, and b.nii."""
    folder = path.parent / path.read_text(encoding="utf-8").split()[1].split(",")[0]
    return Found(sorted([folder.name, "b.nii"]))


def _lists() -> Iterator[Malformed]:
    beside = {"a.nii": nifti(1), "b.nii": nifti(1)}
    whole = "moving,fixed\na.nii,b.nii\n"
    read = Found([["a.nii", "b.nii"]])
    yield Malformed("list", "whole", "pair list", written("p.csv", whole, **beside), read)
    for name, text in (
        ("no user", "moving,fixed\n~nosuchuser/a,b.nii\n"),
        ("NUL", "moving,fixed\na\0.nii,b.nii\n"),
        ("nothing", ""),
        ("headings", "moving,fixed\n"),
        ("one column", "moving\na.nii\n"),
        ("twice", "moving,fixed,moving\na.nii,b.nii,a.nii\n"),
        ("many cells", "moving,fixed\na.nii,b.nii,c,d\n"),
        ("a huge cell", "moving,fixed\n" + "x" * 300_000 + ",b.nii\n"),
        ("a long name", "moving,fixed\n" + "x" * 3000 + ",b.nii\n"),
        ("no file", "moving,fixed\ngone.nii,b.nii\n"),
        ("bytes", "moving,fixed\n\udcff.nii,b.nii\n"),
        ("empty cell", "moving,fixed\n,b.nii\n"),
        ("quotes", 'moving,fixed\n"a.nii,b.nii\n'),
        ("words", "hello"),
        ("commands", "moving,fixed\n$(rm x),`y`\n"),
    ):
        for door in ("pair list", "dataset"):
            yield Malformed(
                "list", f"{name}, {door}", door, written("p.csv", text, **beside), refused()
            )
    for name, text in (
        ("its folder", "moving,fixed\n.,b.nii\n"),
        ("the root", "moving,fixed\n/,b.nii\n"),
    ):
        yield Malformed("list", name, "dataset", written("p.csv", text, **beside), Truth(_listed))
    for n, text in enumerate(_NO_JSON):
        for door in ("pair list", "dataset"):
            if door == "dataset" or not text.startswith("\ufeff"):
                yield Malformed(
                    "list", f"no JSON {n}, {door}", door, written("p.json", text), refused()
                )
    for n, entry in enumerate(
        (
            3,
            None,
            [],
            {},
            {"moving": 3, "fixed": "b.nii"},
            {"moving": ["a"], "fixed": "b.nii"},
            {"moving": "a\0", "fixed": "b.nii"},
            {"moving": "~nosuchuser", "fixed": "b.nii"},
            {"moving": "x" * 9000, "fixed": "b.nii"},
            {"moving": "a.nii"},
            {"moving": "", "fixed": "b.nii"},
            {"moving": "\udcff", "fixed": "b.nii"},
            {"moving": "a.nii", "fixed": "b.nii", "moving_labels": 3},
        )
    ):
        for text in (json.dumps([entry]), json.dumps({"pairs": [entry]})):
            write = written("p.json", text, **beside)
            yield Malformed("list", f"entry {n}, {text[:9]}", "dataset", write, refused())
    for n, described in enumerate(
        (
            {"training": [3]},
            {"training": [{"image": 3}]},
            {"training": "x"},
            {"training": [{"image": "gone.nii"}]},
            {"training": [{"image": "a\0"}]},
            {"registration_val": [3], "training": [{"image": "a.nii"}]},
            {"training": [{"image": "a.nii", "label": 3}]},
            {"training": {"a": 1}},
        )
    ):
        write = written("T_dataset.json", json.dumps(described), **beside)
        yield Malformed("list", f"Learn2Reg {n}", "dataset", write, refused())


def _changed(door: str, file: str, change: Callable[[Any], object]) -> Callable[[Path], Path]:
    """A registration folder with its report, or another text of it, changed."""

    def write(folder: Path) -> Path:
        shutil.copytree(_WHOLE["scene"], folder / "out")
        path = folder / "out" / file
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            change(content)
            path.write_text(json.dumps(content), encoding="utf-8")
        else:
            change(path)
        return folder / "out"

    return write


def _registrations() -> Iterator[Malformed]:
    def report(name: str, change: Callable[[Any], object], door: str = "scene") -> Malformed:
        return Malformed(
            "registration",
            name,
            door,
            _changed(door, "report.json", change),
            refused("report.json"),
        )

    for n, value in enumerate(
        ("../../../etc/passwd", "/etc/passwd", "a\0b", "~nosuchuser", 3, None, "", "x" * 9000)
    ):
        yield report(f"part {n}", lambda r, v=value: r["expert_loads"][0].update(part=v))
        yield report(
            f"weights {n}", lambda r, v=value: r["pair"].update(moving=v and [v], other={"name": v})
        )
    for n, value in enumerate((None, [], 3, "x", {"a": 1}, [1e308], [[1]], True)):
        yield report(f"affine {n}", lambda r, v=value: r["pair"]["fixed"].update(affine=v))
        yield report(f"shape {n}", lambda r, v=value: r["pair"]["fixed"].update(shape=v))
        if value is not None and value != []:
            yield report(f"network grid {n}", lambda r, v=value: r.update(network_grid=v))
            yield report(f"loads {n}", lambda r, v=value: r.update(expert_loads=v))
    for n, value in enumerate((-1, 10**30, 1.5, "4", None, True)):
        yield report(f"counts {n}", lambda r, v=value: r["expert_loads"][0].update(counts=[v]))
        yield report(f"layer {n}", lambda r, v=value: r["expert_loads"][0].update(layer=v))
    for n, text in enumerate(_NO_JSON):
        write = _changed(
            "scene", "loads", lambda p, t=text: _overwrite(p.parent / "report.json", t)
        )
        yield Malformed(
            "registration", f"report no JSON {n}", "scene", write, refused("report.json")
        )
    for n, cell in enumerate(
        ("2000000000", "-1", "1.5", "9" * 5000, "", "nan", "1_0", "0x1", "\u0663", "x" * 300_000)
    ):
        for column in (1, 5, 6):

            def table(path: Path, column: int = column, cell: str = cell) -> None:
                loads = path.parent / "experts" / "loads.csv"
                lines = loads.read_text(encoding="utf-8").splitlines()
                cells = lines[1].split(",")
                cells[column] = cell
                loads.write_text(
                    "\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n", encoding="utf-8"
                )

            write = _changed("summary", "loads", table)
            yield Malformed(
                "registration", f"loads.csv {column} {n}", "summary", write, refused("loads.csv")
            )
    for (
        file
    ) in "warped.nii.gz displacement.nii.gz transform.h5 jacobian.nii.gz experts/loads.csv".split():
        for name, new in (("gone", None), ("empty", b""), ("text", b"hello")):

            def spoil(path: Path, file: str = file, new: bytes | None = new) -> None:
                place = path.parent / file
                place.unlink() if new is None else place.write_bytes(new)

            yield Malformed(
                "registration", f"{file} {name}", "scene", _changed("scene", "x", spoil), refused()
            )
    link = _changed("scene", "x", lambda p: _link(p.parent / "warped.nii.gz"))
    yield Malformed("registration", "a link out", "scene", link, refused("leads out"))


def _overwrite(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


_RUN: dict[str, Any] = {
    "format": "shmoareg-run-1", "dataset": {"path": "here", "options": {}},
    "from": {"name": "abdomen", "sha256": "0", "card": {}}, "config": {}, "settings": {"steps": 10},
    "run": {"save_every": 5}, "versions": {"shmoareg": "0"},
}  # fmt: skip
_EVALUATION: dict[str, Any] = {
    "format": "shmoareg-evaluation-1",
    "dataset": {"path": "here", "options": {}},
    "part": "all",
    "split": "none",
    "method": "start",
    "weights": None,
    "settings": {},
    "pairs": [["a", "b"]],
    "versions": {"shmoareg": "0"},
}
_ODD = (None, 3, -1, 1.5, "x", [], {}, [[]], 10**400, True, "x" * 10**5, {"a": {"b": [1]}}, "a\0b")


def _of_type(value: Any, plain: Any) -> bool:
    return isinstance(value, type(plain)) and isinstance(value, bool) == isinstance(plain, bool)


def _runs() -> Iterator[Malformed]:
    for n, text in enumerate(_NO_JSON):
        for door, file in (
            ("run", "run.json"),
            ("evaluation", "evaluation.json"),
            ("split", "split.json"),
        ):
            write = written(file, text)
            yield Malformed(door, f"no JSON {n}", door, write, refused())
        yield Malformed("lock", f"no JSON {n}", "lock", written("lock", text), Found("held"))
    for n, value in enumerate(_ODD):
        for key in ("dataset", "from", "config", "settings", "run", "versions"):
            if not _of_type(value, {}):
                write = written("run.json", json.dumps(_RUN | {key: value}))
                yield Malformed("run", f"{key} {n}", "run", write, refused("run.json"))
        for part, key, plain in (
            ("settings", "steps", 1),
            ("run", "save_every", 1),
            ("run", "affine", "auto"),
        ):
            if not (_of_type(value, plain) and value == plain):
                if value == 3 and key != "affine":
                    continue
                write = written("run.json", json.dumps(_RUN | {part: {key: value}}))
                yield Malformed("run", f"{key} {n}", "run", write, refused("run.json"))
        for key in ("dataset", "settings", "pairs", "versions"):
            if not _of_type(value, _EVALUATION[key]) or (key == "dataset"):
                write = written("evaluation.json", json.dumps(_EVALUATION | {key: value}))
                yield Malformed(
                    "evaluation", f"{key} {n}", "evaluation", write, refused("evaluation.json")
                )
        content = json.dumps({"pid": value, "host": value, "started": value})
        yield Malformed("lock", f"values {n}", "lock", written("lock", content), _HELD_OR_NOT)
        write = written(
            "split.json", json.dumps({"training": value, "validation": value, "test": value})
        )
        yield Malformed("split", f"parts {n}", "split", write, refused("split.json"))


def _weights() -> Iterator[Malformed]:
    def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
        return lambda folder: written("w.safetensors", change(_WHOLE["weights"].read_bytes()))(
            folder
        )

    for name, value in (
        ("depths", [10**6]),
        ("depths", [2] * 10**5),
        ("embed_dim", 10**9),
        ("embed_dim", -1),
        ("heads", 0),
        ("window", [0, 2, 2]),
        ("window", [10**6] * 3),
        ("num_experts", 10**9),
        ("top_k", 10**9),
        ("kernels", [10**7 + 1]),
        ("integration_steps", 10**9),
        ("mlp_ratio", 1e300),
        ("size", None),
        ("made_up", 1),
        ("depths", "x"),
        ("heads", None),
    ):

        def setting(raw: bytes, name: str = name, value: Any = value) -> bytes:
            def change(head: dict[str, Any]) -> None:
                head["__metadata__"]["config"] = json.dumps(
                    json.loads(head["__metadata__"]["config"]) | {name: value}
                )

            return _with_head(raw, change)

        yield Malformed(
            "weights", f"{name} {str(value)[:20]}", "weights", changed(setting), refused()
        )
    for name, change in (
        ("no metadata", lambda head: head.pop("__metadata__")),
        ("no config", lambda head: head["__metadata__"].pop("config")),
        ("no format", lambda head: head["__metadata__"].pop("format")),
        ("config no JSON", lambda head: head["__metadata__"].update(config="[" * 10**5)),
        ("a tensor lost", lambda head: head.pop(next(k for k in head if k != "__metadata__"))),
        (
            "another shape",
            lambda head: head[next(k for k in head if k != "__metadata__")].update(shape=[10**9]),
        ),
        (
            "another type",
            lambda head: head[next(k for k in head if k != "__metadata__")].update(dtype="F64"),
        ),
        (
            "offsets",
            lambda head: head[next(k for k in head if k != "__metadata__")].update(
                data_offsets=[0, 2**60]
            ),
        ),
        (
            "offsets turned",
            lambda head: head[next(k for k in head if k != "__metadata__")].update(
                data_offsets=[9, 0]
            ),
        ),
    ):
        write = changed(lambda raw, change=change: _with_head(raw, change))
        yield Malformed("weights", name, "weights", write, refused())
    for length in (0, 1, 10**6, 10**12, 2**63, 2**64 - 1):
        write = changed(lambda raw, n=length: struct.pack("<Q", n) + raw[8:])
        yield Malformed("weights", f"a head of {length}", "weights", write, refused())
    for share in (0, 7, 8, 9, 1000):
        yield Malformed(
            "weights",
            f"cut at {share}",
            "weights",
            changed(lambda raw, n=share: raw[:n]),
            refused(),
        )
    truth = Truth(oracles.tensors)
    for n in range(25):

        def bits(raw: bytes, n: int = n) -> bytes:
            size = struct.unpack("<Q", raw[:8])[0]
            return list(damaged(raw, 100 + n, 10, slice(0, size + 200)))[n % 10][1]

        yield Malformed("weights", f"damage {n}", "weights", changed(bits), truth)
    for name, content in (
        ("a pickle", b"\x80\x02}q\0."),
        ("a zip", b"PK\x03\x04" + bytes(99)),
        ("text", b"hello"),
    ):
        yield Malformed("weights", name, "weights", written("w.safetensors", content), refused())


def _with_head(raw: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    size = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8 : 8 + size])
    change(head)
    new = json.dumps(head).encode()
    new += b" " * (-len(new) % 8)
    return struct.pack("<Q", len(new)) + new + raw[8 + size :]


def all_others() -> Iterator[Malformed]:
    for make in (_transforms, _landmarks, _lists, _registrations, _runs, _weights):
        yield from make()
