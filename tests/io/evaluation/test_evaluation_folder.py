"""The folder of an evaluation: one plan for all who begin it, whole cases, tables that miss
none.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re

import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.evaluation import tables
from napari_shmoareg.evaluation.run import FORMAT, EvaluationFolder, Shard
from napari_shmoareg.evaluation.tables import as_csv, write_comparison, write_tables
from napari_shmoareg.geometry import LabelNames


def plan_of(pairs, **more):
    return {
        "format": FORMAT,
        "dataset": {"path": "here", "options": {}},
        "part": "all",
        "split": "none",
        "method": "start",
        "weights": None,
        "settings": {"surface": True},
        "pairs": [list(pair) for pair in pairs],
        "versions": {"shmoareg": "0"},
    } | more


def case_of(number, pair, dice=0.5, error=""):
    stages = {
        stage: {"means": {"dice": dice}, "labels": {"3": {"dice": dice}}}
        for stage in ("start", "after")
    }
    about = {"number": number, "moving": pair[0], "fixed": pair[1]}
    about |= {
        "moving_subject": pair[0],
        "fixed_subject": pair[1],
        "seconds": None if error else 1.5,
    }
    return about | {"error": error, "stages": {} if error else stages, "machine": {"CPUs": 2}}


def write(folder, case):
    folder.write(f"{case['number']:04d}", case)


PAIRS = [("a", "b"), ("b", "a"), ("a", "c")]


@pytest.fixture
def folder(tmp_path) -> EvaluationFolder:
    made = EvaluationFolder(tmp_path / "table")
    made.begin(plan_of(PAIRS))
    return made


def begin(path, plan, barrier, said):
    """In a process of its own: wait for the others, then begin."""
    barrier.wait(60)
    try:
        EvaluationFolder(path).begin(plan)
        said.put((plan["part"], "begun"))
    except Exception as error:
        said.put((plan["part"], f"{type(error).__name__}: {error}"))


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked, so that they begin at once"
)
@pytest.mark.parametrize("attempt", range(5))
def test_processes_that_begin_at_once_agree_on_one_plan(tmp_path, attempt):
    """Four with one plan and two with another, let go together: all of one kind begin, the others
    are refused.
    """
    out, parts = tmp_path / "deep" / "table", ("all", "test", "all", "test", "all", "all")
    forked = multiprocessing.get_context("fork")
    barrier, said = forked.Barrier(len(parts)), forked.Queue()
    processes = [
        forked.Process(target=begin, args=(out, plan_of(PAIRS, part=p), barrier, said))
        for p in parts
    ]
    for process in processes:
        process.start()
    told = [said.get(timeout=60) for _ in parts]
    for process in processes:
        process.join(60)
    kept = EvaluationFolder(out).read_plan()["part"]
    for part, word in told:
        assert (
            word == "begun"
            if part == kept
            else re.match("InputError: .*started with other part", word)
        ), word
    assert sorted(entry.name for entry in out.iterdir()) == ["cases", "evaluation.json"]


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(InputError, match=r"not empty .*letter\.txt"):
        EvaluationFolder(tmp_path).begin(plan_of(PAIRS))
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "table").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is a file"):
        EvaluationFolder(tmp_path / "table").begin(plan_of(PAIRS))


def test_what_a_killed_process_left_of_its_plan_is_no_hindrance(tmp_path):
    (tmp_path / ".evaluation.json.partial-99999999").write_text('{"for', encoding="utf-8")
    EvaluationFolder(tmp_path).begin(plan_of(PAIRS))
    assert EvaluationFolder(tmp_path).read_plan() == plan_of(PAIRS)


def test_a_damaged_plan_and_one_of_another_version_are_told(folder):
    folder.plan.write_text('{"format": "shmoareg-eval', encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        folder.begin(plan_of(PAIRS))
    folder.plan.write_text('{"format": "shmoareg-evaluation-9"}', encoding="utf-8")
    with pytest.raises(InputError, match="another version"):
        folder.read_plan()


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{}", "\x00\x00", json.dumps(case_of(1, ("a", "c")))]
)
def test_a_damaged_case_and_one_of_another_pair_are_told(folder, text):
    folder.row_file("0001").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"0001\.json is damaged"):
        folder.read_case(1, PAIRS[0])
    cases, damaged = folder.read_cases(plan_of(PAIRS))
    assert cases == [] and len(damaged) == 1


def test_shards_share_all_pairs_and_each_pair_once():
    for count in (0, 1, 7, 90):
        for of in (1, 2, 8):
            numbers = [
                number for shard in range(1, of + 1) for number in Shard(shard, of).share(count)
            ]
            assert sorted(numbers) == list(range(1, count + 1))


def test_the_tables_say_what_is_missing_and_what_failed(folder):
    write(folder, case_of(1, PAIRS[0], dice=float("nan")))
    write(folder, case_of(3, PAIRS[2], error="it broke"))
    written = write_tables(folder, plan_of(PAIRS))
    assert (written.pairs, written.done, written.failed) == (3, 2, 1)
    page = (folder.path / "summary.md").read_text(encoding="utf-8")
    assert "**Not finished: 2 of 3 pairs.**" in page and "- a onto c: it broke" in page
    with (folder.path / "pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["stage"], row["error"]) for row in rows] == [
        ("1", "start", ""),
        ("1", "after", ""),
        ("3", "after", "it broke"),
    ]
    assert rows[1]["seconds"] == "1.5" and "dice" not in rows[1]


def test_names_of_labels_are_in_every_table_of_labels(folder):
    stage = {"means": {"dice": 0.5}, "labels": {"1": {"dice": 0.5}, "22": {"dice": 0.6}}}
    case = case_of(1, PAIRS[0]) | {"stages": {"start": stage, "after": stage}}
    sides = {"both": [1, 22], "only_moving": [3], "only_fixed": []}
    write(folder, case | {"labels": sides})
    asked = []

    def naming(labels):
        asked.append(list(labels))
        return LabelNames({1: "liver", 3: "spleen", 9: "absent"}, "organs.ctbl")

    written = write_tables(folder, plan_of(PAIRS), naming)
    assert asked[-1] == [1, 3, 22] and written.names.names == {1: "liver", 3: "spleen"}
    for table in ("labels.csv", "summary.csv"):
        with (folder.path / table).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = {row["label"]: row["name"] for row in rows}
        assert found == {"1": "liver", "22": ""} | ({"mean": ""} if "summary" in table else {})
    page = (folder.path / "summary.md").read_text(encoding="utf-8")
    assert "| 1 liver |" in page and "| 22 |" in page
    assert "Names of the labels: from organs.ctbl." in page and "only moving: 3 spleen" in page


def test_a_case_that_another_process_writes_meanwhile_is_in_the_tables(folder, monkeypatch):
    """The slower of two shards writes its tables last, though it read the cases before the faster
    one was done.
    """
    write(folder, case_of(1, PAIRS[0]))
    plan, made = plan_of(PAIRS), tables.summary_page

    def slow(*arguments):
        write(folder, case_of(2, PAIRS[1]))
        monkeypatch.setattr(tables, "summary_page", made)
        return made(*arguments)

    monkeypatch.setattr(tables, "summary_page", slow)
    assert write_tables(folder, plan).done == 2
    assert "2 of 3 pairs" in (folder.path / "summary.md").read_text(encoding="utf-8")
    assert (folder.path / "pairs.csv").read_text(encoding="utf-8").count("\n2,b,a,") == 2


def test_a_half_written_table_taken_by_another_machine_is_written_again(folder, monkeypatch):
    """Process numbers of another machine mean nothing here, so it may clear away what is being
    written.
    """
    write(folder, case_of(1, PAIRS[0]))
    written, lost = tables.atomic_write, []

    def losing(path):
        if path.name == "summary.csv" and not lost:
            lost.append(path)
            raise FileNotFoundError(path)
        return written(path)

    monkeypatch.setattr(tables, "atomic_write", losing)
    write_tables(folder, plan_of(PAIRS))
    assert lost and (folder.path / "summary.csv").read_text(encoding="utf-8").startswith(
        "stage,label,measure,n,mean"
    )


def test_seconds_of_several_machines_are_told_to_be_mixed(folder):
    for number, pair in enumerate(PAIRS, start=1):
        write(folder, case_of(number, pair) | {"machine": {"processor": f"p{number % 2}"}})
    write_tables(folder, plan_of(PAIRS))
    page = (folder.path / "summary.md").read_text(encoding="utf-8")
    assert "- 2 pairs: processor p1" in page and "come from several machines or devices" in page


def test_csv_has_nothing_where_nothing_was_measured():
    text = as_csv([{"a": float("nan"), "b": None, "c": 'x, "y"'}, {"a": 0.0}], ("a", "b", "c"))
    assert text == 'a,b,c\n,,"x, ""y"""\n0.0,,\n'


def test_two_evaluations_are_compared_on_the_pairs_of_both(folder, tmp_path):
    other = EvaluationFolder(tmp_path / "other")
    other.begin(plan_of(PAIRS[:2], dataset={"path": "there", "options": {}}))
    for number, pair in enumerate(PAIRS, start=1):
        write(folder, case_of(number, pair, dice=0.5 + number / 10))
    with pytest.raises(InputError, match="no finished pair in common"):
        write_comparison(folder, other)
    write(other, case_of(2, PAIRS[1], dice=0.4))
    tests, page = write_comparison(folder, other)
    assert (tests[0].measure, tests[0].n, tests[0].difference) == ("dice", 1, pytest.approx(0.3))
    text = page.read_text(encoding="utf-8")
    assert (
        page.name == "against-other.md"
        and "specified differently" in text
        and "**Not finished: other.**" in text
    )
    assert (
        page.with_suffix(".csv")
        .read_text(encoding="utf-8")
        .startswith("measure,over,n,equal,first,second,")
    )
    with pytest.raises(InputError, match="the evaluation itself"):
        write_comparison(folder, EvaluationFolder(folder.path / ".." / "table"))
    with pytest.raises(InputError, match="holds no evaluation"):
        write_comparison(folder, EvaluationFolder(tmp_path / "nowhere"))
