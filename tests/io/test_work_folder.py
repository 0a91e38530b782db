"""Work of many rows: one plan, whole rows, one process alone, and the same command goes on."""

from __future__ import annotations

import os

import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.work_folder import WorkFolder

PLAN = {"weights": "w", "settings": {"size": 40, "device": "cpu"}, "pairs": [["a", "b"]]}


def folder(path) -> WorkFolder:
    return WorkFolder(path, "plan.json", "rows", "trial", " Delete it.")


def test_another_plan_is_refused_with_what_differs(tmp_path):
    out = tmp_path / "deep" / "out"
    folder(out).begin(PLAN)
    folder(out).begin(dict(reversed(PLAN.items())))
    other = PLAN | {"weights": "v", "settings": {"size": 48, "device": "cpu"}}
    with pytest.raises(
        InputError,
        match=r"trial in '.*' was started with other weights and other settings \(size\)",
    ):
        folder(out).begin(other)
    assert sorted(os.listdir(out)) == ["plan.json", "rows"]


def test_only_what_is_missing_is_done_and_each_row_is_there_before_the_next(tmp_path):
    work, done = folder(tmp_path).begin(PLAN), []

    def do(key):
        assert [f"{key}.json" for key in done] == sorted(os.listdir(work.rows))
        if key == "3":
            raise KeyboardInterrupt
        done.append(key)
        return {"key": key, "value": float("nan")}

    def complete(keys):
        return list(work.complete(keys, lambda key: work.read(key, dict), do))

    with pytest.raises(KeyboardInterrupt):
        complete("123")
    assert done == ["1", "2"]
    assert complete("12") == [({"key": key, "value": None}, False) for key in "12"]
    assert done == ["1", "2"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"value": "x"}'])
def test_a_damaged_row_is_named(tmp_path, content):
    work = folder(tmp_path).begin(PLAN)
    work.row_file("1").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"1\.json is damaged .* Delete it\."):
        work.read("1", lambda row: float(row["value"]))
    assert work.read("2", dict) is None


def test_one_process_works_there_alone(tmp_path):
    with folder(tmp_path).begin(PLAN) as work:
        with pytest.raises(InputError, match="Another process works in"), folder(tmp_path):
            raise AssertionError
        assert work.read_plan() == PLAN
    with folder(tmp_path).begin(PLAN):
        pass
    assert sorted(os.listdir(tmp_path)) == ["plan.json", "rows"]
