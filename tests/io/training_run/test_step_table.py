"""Tables that grow with a run, and are cut back."""

from __future__ import annotations

import errno

import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.training.logs import StepTable, read_rows

COLUMNS = ("step", "loss", "why")


def rows(*steps):
    return [{"step": step, "loss": step / 3, "why": None} for step in steps]


@pytest.fixture
def table(tmp_path):
    table = StepTable(tmp_path / "t.csv", COLUMNS, last=0)
    table.add(rows(1, 2, 3))
    table.close()
    return tmp_path / "t.csv"


def test_a_number_comes_back_with_all_its_digits_and_none_stays_empty(table):
    found = read_rows(table)
    assert [float(row["loss"]) for row in found] == [1 / 3, 2 / 3, 1.0]
    assert {row["why"] for row in found} == {""}


@pytest.mark.parametrize("more", [b"", b"4", b"4,1.3333", b'4,1.0,"half a', b"\xff\xfe"])
def test_what_a_killed_process_left_beyond_the_last_step_is_taken_away(table, more):
    whole = table.read_bytes()
    table.write_bytes(whole + more)
    StepTable(table, COLUMNS, last=3).close()
    assert table.read_bytes() == whole
    goes_on = StepTable(table, COLUMNS, last=2)
    goes_on.add(rows(3))
    goes_on.flush()
    assert table.read_bytes() == whole


def test_half_a_first_line_is_begun_anew(tmp_path):
    (tmp_path / "t.csv").write_text("step,lo", encoding="utf-8")
    StepTable(tmp_path / "t.csv", COLUMNS, last=5).close()
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "step,loss,why\n"


def test_words_of_several_lines_stay_one_line(table):
    goes_on = StepTable(table, COLUMNS, last=3)
    goes_on.add([{"step": 4, "loss": 1.0, "why": 'it said "no",\nand went'}])
    goes_on.close()
    assert len(table.read_text(encoding="utf-8").splitlines()) == 5
    assert read_rows(table)[-1]["why"] == 'it said "no", and went'


def test_a_table_with_other_columns_is_refused_and_left_as_it_is(table):
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="damaged: its first line should be 'step,loss,why'"):
        StepTable(table, COLUMNS, last=3)
    assert table.read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_a_reader_sees_whole_lines_only(table):
    with table.open("a") as file:
        file.write("4,0.1")
    assert [row["step"] for row in read_rows(table)] == ["1", "2", "3"]
    assert read_rows(table.with_name("none.csv")) == []


def test_a_full_disk_is_told_as_one(table, monkeypatch):
    goes_on = StepTable(table, COLUMNS, last=3)

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        InputError, match=r"disk is full: .*t.csv could not be written \(\d+ MB free\)"
    ):
        goes_on.flush()


def test_a_table_of_an_earlier_version_goes_on_with_its_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n", encoding="utf-8")
    table = StepTable(path, ("step", "loss", "bending"), last=1, earlier=("step", "loss"))
    table.add([{"step": 2, "loss": 0.125, "bending": 3.0}])
    table.close()
    assert path.read_text(encoding="utf-8") == "step,loss\n1,0.5\n2,0.125\n"
