"""Files that others wrote: whatever they hold, they are read, or refused by name."""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save

from napari_shmoareg.datasets import open_dataset, read_pair_list
from napari_shmoareg.errors import InputError
from napari_shmoareg.io import (
    load_network,
    read_card,
    read_registration,
    save_network,
    write_registration,
)
from napari_shmoareg.io.report import read_registration_summary
from napari_shmoareg.io.untrusted import (
    check_fields,
    inside,
    printable,
    read_csv,
    read_json,
    read_text,
    user_path,
)
from napari_shmoareg.model import SHMoAReg, SHMoARegConfig
from napari_shmoareg.training.plan import read_plan
from napari_shmoareg.training.run_folder import RunLock, read_holder


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested"),
        (b"{", "JSON"),
        (b"", "JSON"),
        (b"\xff\xfe{\0", "UTF-8"),
        (b"9" * 5000, "JSON"),
    ],
)
def test_what_is_no_json_is_refused_by_name(tmp_path, content, says):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.json.*{says}.*a plan"):
        read_json(tmp_path / "a.json", "a plan")


def test_json_is_read_with_a_byte_order_mark_and_as_deep_as_any_file_of_ours(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [[[[1]]]]}')
    assert read_json(tmp_path / "a.json", "a plan") == {"a": [[[[1]]]]}


def test_only_regular_files_of_some_size_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "large").write_bytes(b"x" * 101)
    cases = {
        "pipe": "not a regular file",
        "link": "a link to nothing",
        "gone": "There is no file",
        ".": "a folder",
    }
    for name, says in cases.items():
        with pytest.raises(InputError, match=says):
            read_text(tmp_path / name, "a list")
    with pytest.raises(InputError, match="large has"):
        read_text(tmp_path / "large", "a list", limit=100)
    with pytest.raises(InputError, match="not a regular file"):
        read_text("/dev/zero", "a list")


def test_paths_without_a_home_or_with_nul_are_refused_unless_there_is_such_a_file(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for path, says in (("~nosuchuser/a.nii", "~nosuchuser"), ("a\0b", "NUL")):
        with pytest.raises(InputError, match=says):
            user_path(path)
    (tmp_path / "~nosuchuser").write_text("x", encoding="utf-8")
    assert str(user_path("~nosuchuser")) == "~nosuchuser"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n1," + "x" * 200_000 + "\n", "line"),
        ("a,b\n1,2,3\n", "line 2: 3 cells.*2 columns"),
        ("a,b,a\n1,2,3\n", "more than once"),
        ("c\n1\n", "no column a and b"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path, content, says):
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"a\.csv.*{says}"):
        read_csv(tmp_path / "a.csv", "a table", required=("a", "b"))


def test_a_table_has_its_lines_and_empty_cells(tmp_path):
    (tmp_path / "a.csv").write_text('a, b\n1,"x\ny"\n\n2\n', encoding="utf-8")
    assert read_csv(tmp_path / "a.csv", "a table") == (
        ["a", "b"],
        [(3, {"a": "1", "b": "x\ny"}), (5, {"a": "2", "b": ""})],
    )


def test_names_out_of_odd_bytes_can_be_printed():
    assert printable(os.fsdecode(b"sc\xe4n")) == r"sc\xe4n" and printable("\ud800a") == r"\ud800a"
    assert printable("größe") == "größe"


def test_a_folder_of_others_is_not_left(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    for name in ("../secret", "/etc/passwd", "link", "a\0b"):
        with pytest.raises(InputError, match="leads out"):
            inside(tmp_path / "in", name)
    assert inside(tmp_path / "in", "a/../b") == tmp_path / "in" / "a/../b"


@dataclass
class Kinds:
    whole: int
    number: float | None
    pair: tuple[int, ...] = ()


def test_values_of_other_types_are_refused_by_their_names():
    check_fields(Kinds, {"whole": 1, "number": 2, "pair": [1, 2]})
    check_fields(Kinds, {"number": None})
    wrong = [
        {"whole": 1.5},
        {"whole": True},
        {"whole": 10**30},
        {"number": "1"},
        {"pair": [1, "a"]},
        {"x": 1},
        [1],
    ]
    for values in wrong:
        with pytest.raises(ValueError):
            check_fields(Kinds, values)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.json", '[{"moving": ["a"], "fixed": "b"}]', "'moving' is"),
        ("p.json", '[{"moving": "a\\u0000", "fixed": "b"}]', "NUL"),
        ("p.json", '[{"moving": "~nosuchuser/a", "fixed": "b"}]', "pair 1.*~nosuchuser"),
        ("p.json", json.dumps([{"moving": "x" * 5000, "fixed": "b"}]), "no file"),
        ("p.json", '{"pairs": {"a": 1}}', "no list of pairs"),
        ("p.json", "[" * 5000, "nested"),
        ("T_dataset.json", '{"training": [3]}', "has no image"),
        ("T_dataset.json", '{"training": ["a\\u0000"]}', "has no image"),
        ("p.csv", "moving,fixed\n~nosuchuser/a,b\n", "line 2.*~nosuchuser"),
        ("p.csv", "moving,fixed\n" + "x" * 5000 + ",b\n", "line 2.*no file"),
        ("p.csv", "moving,fixed\na,b,c,d\n", "line 2"),
    ],
)
def test_lists_with_entries_that_are_none_are_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    readers = [open_dataset] if name.endswith("json") else [open_dataset, read_pair_list]
    for read in readers:
        with pytest.raises(InputError, match=rf"{name}.*{says}"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "content", ["[" * 50_000, '{"pid": 1e400, "host": 1, "started": "x"}', "", "\0"]
)
def test_a_lock_that_is_none_holds_nothing(tmp_path, content):
    (tmp_path / "lock").write_text(content, encoding="utf-8")
    assert read_holder(tmp_path / "lock") is None


def test_a_lock_with_a_number_of_no_process_is_taken_and_a_folder_in_its_place_is_named(tmp_path):
    path = tmp_path / "lock"
    path.write_text(
        json.dumps({"pid": 10**30, "host": os.uname().nodename, "started": 1.0}), encoding="utf-8"
    )
    with RunLock(path):
        assert read_holder(path)["pid"] == os.getpid()
    path.mkdir()
    with pytest.raises(InputError, match="lock is a folder"), RunLock(path):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[" * 50_000,
        "3",
        '{"format": 1}',
        '{"format": "shmoareg-run-1", "dataset": {"path": 1, "options": 3}}',
    ],
)
def test_a_run_that_is_none_is_refused_by_name(tmp_path, text):
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json"):
        read_plan(tmp_path / "run.json")


# Weights.


def _weights(path, config, tensors=None, **metadata):
    known = {"format": "shmoareg-1", "config": json.dumps(config), "card": "{}"}
    path.write_bytes(save(tensors or {"x": torch.zeros(1)}, metadata=known | metadata))
    return path


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return SHMoAReg(SHMoARegConfig.preset("tiny"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depths", [10**6]),
        ("depths", [2] * 10**5),
        ("embed_dim", 10**9),
        ("heads", 0),
        ("heads", 3),
        ("window", [0, 2, 2]),
        ("window", [10**6] * 3),
        ("num_experts", 10**9),
        ("full_channels", -1),
        ("kernels", [10**7 + 1]),
        ("integration_steps", 10**9),
        ("mlp_ratio", 1.5),
        ("size", "x" * 10**6),
        ("passes", [0.5] * 100 + [1.0]),
        ("attention", "m" * 10**6),
        ("diffeomorphic", 2),
        ("made_up", 1),
    ],
)
def test_settings_beyond_every_network_are_refused_before_one_is_built(
    tmp_path, tiny, monkeypatch, name, value
):
    monkeypatch.setattr("napari_shmoareg.io.checkpoint.SHMoAReg", None)  # nothing may be built
    path = _weights(tmp_path / "w.safetensors", tiny.config.to_dict() | {name: value})
    with pytest.raises(InputError, match=rf"w\.safetensors.*{name}") as caught:
        load_network(path)
    assert "--size" not in str(caught.value) and len(str(caught.value)) < 1000


def test_shapes_are_compared_before_anything_is_allocated(tmp_path, tiny, monkeypatch):
    large = tiny.config.to_dict() | {
        "embed_dim": 1024,
        "depths": [8] * 5,
        "num_experts": 128,
        "top_k": 4,
    }
    path = _weights(tmp_path / "w.safetensors", large, dict(tiny.state_dict()))
    devices = []
    built = SHMoAReg.__init__

    def noted(self, config=None):
        devices.append(torch.empty(0).device.type)
        built(self, config)

    monkeypatch.setattr(SHMoAReg, "__init__", noted)
    with pytest.raises(InputError, match=r"w\.safetensors do not fit"):
        load_network(path)
    assert devices == ["meta"]


def test_weights_of_other_kinds_of_number_are_refused(tmp_path, tiny):
    name = next(iter(tiny.state_dict()))
    for tensor, says in (
        (tiny.state_dict()[name].int(), "another data type"),
        (tiny.state_dict()[name].double() + 1e300, "NaN or infinite"),  # infinite as float32
        (tiny.state_dict()[name] * float("nan"), "NaN or infinite"),
    ):
        path = _weights(
            tmp_path / "w.safetensors",
            tiny.config.to_dict(),
            dict(tiny.state_dict()) | {name: tensor},
        )
        with pytest.raises(InputError, match=rf"w\.safetensors.*{says}"):
            load_network(path)


@pytest.mark.parametrize("card", ["[" * 5000, "3", "{"])
def test_a_card_that_is_none_is_refused(tmp_path, tiny, card):
    path = _weights(tmp_path / "w.safetensors", tiny.config.to_dict(), card=card)
    with pytest.raises(InputError, match=r"w\.safetensors"):
        read_card(path)


@pytest.mark.parametrize("length", [0, 1, 10, 10**6, 10**12, 2**64 - 1])
@pytest.mark.parametrize(
    "rest", [b"{", b"{}", b'{"__metadata__":{"format":"shmoareg-1"}}', b"{" * 5000]
)
def test_a_head_of_any_length_is_refused_by_name(tmp_path, length, rest):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + rest)
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_network(tmp_path / "w.safetensors")


def test_weights_cut_anywhere_are_refused_by_name(tmp_path, tiny):
    save_network(tiny, tmp_path / "whole.safetensors", card={})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    assert load_network(tmp_path / "whole.safetensors").config == tiny.config
    for length in (0, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.safetensors"):
            load_network(tmp_path / "cut.safetensors")


# A registration folder.


@pytest.fixture(scope="module")
def written(phantoms, lively_network, tmp_path_factory):
    """A registration folder, made once."""
    from napari_shmoareg.registration.register import register

    registration = register(phantoms, lively_network(0.03), affine="none", size=20, device="cpu")
    path = tmp_path_factory.mktemp("written") / "out"
    write_registration(registration, path, weights="tiny", figures=False)
    return path


@pytest.fixture
def folder(written, tmp_path):
    """A copy to damage."""
    shutil.copytree(written, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("expert", ["2000000000", "-1", "1.5", "1_0", "9" * 5000, "٣"])
def test_loads_of_experts_that_are_none_are_refused_without_taking_memory(folder, expert):
    path = folder / "experts" / "loads.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = lines[1].split(",")
    path.write_text(
        "\n".join([lines[0], ",".join([*cells[:5], expert, *cells[6:]]), *lines[2:]]) + "\n",
        encoding="utf-8",
    )
    with pytest.raises(InputError, match=r"loads\.csv is damaged.*expert"):
        read_registration_summary(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report["expert_loads"][0].update(part="../../../etc/passwd"),
        lambda report: report["expert_loads"][0].update(part="/etc/passwd"),
        lambda report: report["expert_loads"][0].update(image="../x"),
        lambda report: report["expert_loads"][0].update(direction="x/../../y"),
        lambda report: report["expert_loads"][0].update(layer=10**30),
        lambda report: report["expert_loads"][0].update(counts=[1.5]),
        lambda report: report["expert_loads"][0].update(counts=[10**30]),
        lambda report: report["expert_loads"][0].update(cells="4"),
        lambda report: report["pair"].update(other={"name": "x", "shape": [1, 1, 1], "affine": []}),
        lambda report: report["pair"]["fixed"].update(affine=[["a"] * 4] * 4),
        lambda report: report["pair"]["fixed"].update(shape=[1, 2]),
        lambda report: report.update(similarity={"before": {"ncc": "x"}}),
        lambda report: report.update(warnings="no list"),
        lambda report: report.update(choices={"affine": 3}),
        lambda report: report.pop("network_grid"),
    ],
)
def test_a_report_with_parts_of_another_kind_is_refused_by_name(folder, change):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    change(report)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(InputError, match=r"report\.json is damaged"):
        read_registration(folder)


def test_a_link_in_a_registration_folder_that_leads_out_of_it_is_refused(folder, tmp_path):
    (folder / "warped.nii.gz").rename(tmp_path / "warped.nii.gz")
    (folder / "warped.nii.gz").symlink_to(tmp_path / "warped.nii.gz")
    with pytest.raises(InputError, match="leads out"):
        read_registration(folder)
