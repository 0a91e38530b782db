"""Landmarks in files: frames, orders, 3D Slicer's lists, and files that hold something else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from napari_shmoareg.errors import InputError
from napari_shmoareg.io.landmarks import (
    read_landmark_pairs,
    read_landmarks,
    read_points,
    write_landmark_pairs,
    write_slicer_points,
)

FIXED = np.array([[10.5, -20.25, 30.0], [1, 2, 3]])
MOVING = np.array([[11.0, -21.0, 32.5], [-4, 5, -6]])


def test_what_is_written_is_read_back_and_by_the_benchmark_too(tmp_path):
    path = tmp_path / "points.csv"
    write_landmark_pairs(path, moving=MOVING, fixed=FIXED)
    pairs = read_landmark_pairs(path)
    assert (
        np.array_equal(pairs.fixed, FIXED)
        and np.array_equal(pairs.moving, MOVING)
        and pairs.notes == ()
    )
    again = read_landmarks(path)
    assert np.array_equal(again.fixed, FIXED) and np.array_equal(again.moving, MOVING)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "LPS" in lines[0] and lines[2].startswith(
        "-10.5000,20.2500,30.0000,-11.0000,21.0000,32.5000"
    )


def test_the_columns_may_stand_in_any_order_and_the_frame_may_be_ras(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(
        "# RAS,"
        " mm\nname,moving_x,moving_y,moving_z,fixed_x,fixed_y,fixed_z\ncarina,11,-21,32.5,10.5,-20.25,30\n",
        encoding="utf-8",
    )
    pairs = read_landmark_pairs(path)
    assert pairs.fixed.tolist() == [FIXED[0].tolist()] and pairs.moving.tolist() == [
        MOVING[0].tolist()
    ]


@pytest.mark.parametrize("between", [",", ";", "\t", "  "])
def test_a_file_without_words_holds_the_fixed_point_first_in_lps_and_this_is_said(
    tmp_path, between
):
    path = tmp_path / "points.txt"
    path.write_text(between.join(("-1", "-2", "3", "-4", "-5e0", "6.0")) + "\n\n", encoding="utf-8")
    pairs = read_landmark_pairs(path)
    assert pairs.fixed.tolist() == [[1, 2, 3]] and pairs.moving.tolist() == [[4, 5, 6]]
    assert "fixed" in pairs.notes[0] and "LPS" in pairs.notes[1]


@pytest.mark.parametrize("name", ["points.mrk.json", "points.fcsv"])
def test_a_list_of_slicer_comes_back_whatever_its_frame(tmp_path, name):
    path = tmp_path / name
    write_slicer_points(FIXED, path)
    assert np.array_equal(read_points(path), FIXED)
    text = path.read_text(encoding="utf-8")
    assert "LPS" in text
    path.write_text(text.replace("LPS", "RAS"), encoding="utf-8")
    assert np.array_equal(read_points(path), FIXED * [-1, -1, 1])


def test_an_old_fcsv_without_a_frame_is_ras_and_numbers_stand_for_frames(tmp_path):
    path = tmp_path / "old.fcsv"
    row = "vtkMRMLMarkupsFiducialNode_0,1,2,3,0,0,0,1,1,1,0,F-1,,\n"
    path.write_text("# Markups fiducial file version = 4.4\n" + row, encoding="utf-8")
    assert read_points(path).tolist() == [[1, 2, 3]]
    path.write_text("# CoordinateSystem = 1\n" + row, encoding="utf-8")
    assert read_points(path).tolist() == [[-1, -2, 3]]


@pytest.mark.filterwarnings("ignore:.*points have no position")
def test_a_point_of_slicer_that_was_not_placed_is_left_out(tmp_path):
    points = [
        {"position": [1, 2, 3], "positionStatus": "defined"},
        {"position": [0, 0, 0], "positionStatus": "undefined"},
    ]
    path = tmp_path / "list.mrk.json"
    path.write_text(
        json.dumps({"markups": [{"coordinateSystem": "RAS", "controlPoints": points}]}),
        encoding="utf-8",
    )
    assert read_points(path).tolist() == [[1, 2, 3]]


def test_three_numbers_a_row_are_points_of_one_image(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y,z\n-1,-2,3\n", encoding="utf-8")
    assert read_points(path).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "1,2,3,4,5,6\n1,2,3\n", "row 2: six numbers"),
        ("a.csv", "1,2,3,4,5,six\n", "six numbers"),
        ("a.csv", "1,2,3,4,5,nan\n", "NaN"),
        ("a.csv", "# nothing\n", "no points"),
        ("a.csv", None, "no file"),
        ("a.csv", b"\xff\xfe\x00\x01", "as text"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused_with_what_was_expected(
    tmp_path, name, content, says
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=says):
        read_landmark_pairs(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.mrk.json", "{", "not a point list"),
        ("a.mrk.json", '{"markups": []}', "not a point list"),
        (
            "a.mrk.json",
            (
                '{"markups": [{"coordinateSystem": "IJK", "controlPoints": [{"position": [1, 2,'
                " 3]}]}]}"
            ),
            "IJK",
        ),
        ("a.mrk.json", '{"markups": [{"controlPoints": []}]}', "shape"),
        ("a.fcsv", "# CoordinateSystem = IJK\n0,1,2,3,0\n", "IJK"),
        ("a.fcsv", "# CoordinateSystem = LPS\n0,1,2\n", "three numbers"),
        ("a.csv", "1,2\n", "three numbers"),
    ],
)
def test_a_file_that_holds_no_points_is_refused_with_what_was_expected(
    tmp_path, name, content, says
):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_points(tmp_path / name)


def test_points_are_written_in_no_unknown_format(tmp_path):
    with pytest.raises(InputError, match="endings"):
        write_slicer_points(FIXED, tmp_path / "points.xyz")
    assert not list(tmp_path.iterdir())


def test_the_lung_landmarks_are_35_mm_apart_as_filed(shared_data):
    pairs = read_landmark_pairs(shared_data / "lung_ct" / "landmarks_inside_mm.csv")
    assert len(pairs.fixed) == 51
    assert np.linalg.norm(pairs.fixed - pairs.moving, axis=1).mean() == pytest.approx(
        35.3, abs=0.05
    )


@pytest.mark.parametrize(
    "text",
    [
        "12,5;3,125;4,0;10,1;2,0;3,3\n",
        "12,5\t3,125\t4,0\t10,1\t2,0\t3,3\n",
        "1,25e1;3,125;4;10,1;2;3,3\n",
        '"12,5","3,125","4","10,1","2","3,3"\n',
        "moving_x;moving_y;moving_z;fixed_x;fixed_y;fixed_z\n10,1;2,0;3,3;12,5;3,125;4,0\n",
        "12.5,3.125,4.0,10.1,2.0,3.3\n",
    ],
)
def test_decimal_commas_are_read_where_they_can_be_told_from_separators(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    pairs = read_landmark_pairs(tmp_path / "a.csv")
    assert pairs.fixed.tolist() == [[-12.5, -3.125, 4]] and pairs.moving.tolist() == [
        [-10.1, -2, 3.3]
    ]
    again = read_landmarks(tmp_path / "a.csv")
    assert np.array_equal(again.fixed, pairs.fixed) and np.array_equal(again.moving, pairs.moving)


NAMES = "fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("12,5,3,1,4,0,10,1,2,0,3,3\n", "line 1.*decimal"),
        ("1,2,3,4,5,6\n12,5,3,1,4,0,10\n", "line 2.*decimal"),
        (NAMES + "12,5,3,1,4,0,10,1,2,0,3,3\n", "line 2.*decimal"),
        (NAMES + "12,5,3,1,4,0,10\n", "line 2.*decimal"),
        ("12,5 3,1 4,0 10,1 2,0 3,3\n", "line 1.*blanks"),
        ('"1,234","3","4","10","2","3"\n', "1,234.*thousands"),
        ("1.234,5;3;4;10;2;3\n", "1.234,5.*thousands"),
        ("1,234,567;3;4;10;2;3\n", "1,234,567.*thousands"),
        ("12,5;3.1;4;10;2;3\n", "12,5.*thousands"),
        ("1_000,2,3,4,5,6\n", "six numbers"),
        ('"1,2,3,4,5,6\n1,2,3,4,5,6\n', "line 1"),
        ("# the fixed ones are LPS, the moving ones RAS\n1,2,3,4,5,6\n", "LPS and RAS"),
        ("# indices (IJK)\n1,2,3,4,5,6\n", "IJK"),
        ("1,2,3,4,5,6\n1,2,-inf,4,5,6\n", "(row|line) 2.*infinite"),
        ("9" * 200_000 + ",2,3,4,5,6\n", "line 1"),
    ],
)
def test_numbers_that_cannot_be_told_from_their_separators_are_refused(tmp_path, text, says):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    for read in (read_landmark_pairs, read_landmarks):
        with pytest.raises(InputError, match=rf"a\.csv.*{says}"):
            read(tmp_path / "a.csv")


def test_points_of_one_image_with_decimal_commas_are_no_six_columns(tmp_path):
    (tmp_path / "a.csv").write_text("12,5,3,1,4,0\n", encoding="utf-8")
    with pytest.raises(InputError, match="decimal"):
        read_points(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("# ras\n12,5;3,1;4,0\n", encoding="utf-8")
    assert read_points(tmp_path / "a.csv").tolist() == [[12.5, 3.1, 4]]


def _markups(*points, **more):
    return json.dumps(
        {"markups": [{"coordinateSystem": "LPS", "controlPoints": list(points), **more}]}
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            _markups({"position": [1, 2, 3]}, {"label": "F-2", "position": [1, float("nan"), 3]}),
            "'F-2'.*NaN",
        ),
        (_markups({"position": [1, 2, float("-inf")]}), "point number 1 .*infinite"),
        (_markups({"position": [1, 2, 10**400]}), "point number 1 "),
        (_markups({"position": ["1", "2", "3"]}), "point number 1 .*three numbers"),
        (_markups({"position": [1, 2]}), "point number 1 .*three numbers"),
        (_markups({"position": [1, 2, 3]}, coordinateUnits="cm"), "cm"),
        (_markups({"position": [1, 2, 3]}, coordinateUnits=["mm", "mm", "um"]), "um"),
        (
            (
                '{"markups": [{"controlPoints": [{"position": [1, 2, 3]}]}, {"controlPoints":'
                ' [{"position": [4, 5, 6]}]}]}'
            ),
            "2",
        ),
        ("[" * 100_000, "nested"),
        ("[]", "not a point list"),
        (_markups(7), "not a point list"),
    ],
)
def test_a_list_of_slicer_with_points_that_are_none_is_refused_by_name(tmp_path, content, says):
    (tmp_path / "a.mrk.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"a\.mrk\.json.*{says}"):
        read_points(tmp_path / "a.mrk.json")


def test_points_that_were_left_out_are_counted_in_a_warning(tmp_path):
    path = tmp_path / "a.mrk.json"
    path.write_text(
        _markups({"position": [1, 2, 3]}, {"position": [0, 0, 0], "positionStatus": "undefined"}),
        encoding="utf-8",
    )
    with pytest.warns(UserWarning, match="1 of 2 points"):
        assert read_points(path).tolist() == [[-1, -2, 3]]
