"""Fields of view that meet, hardly meet, and do not."""

import numpy as np
import pytest

from napari_shmoareg.errors import NoOverlapError
from napari_shmoareg.geometry import Grid, Volume, VolumePair
from napari_shmoareg.registration.affine import check_overlap, overlap

GRID = Grid((20, 24, 16), np.diag([2.0, 2.5, 3.0, 1.0]))


def shifted(mm):
    matrix = np.eye(4)
    matrix[0, 3] = mm
    return matrix


def test_a_field_of_view_covers_itself_and_half_of_itself_after_half_its_width():
    assert overlap(GRID, GRID, np.eye(4)) == 1
    assert overlap(GRID, GRID, shifted(20)) == pytest.approx(0.5, abs=0.03)
    assert overlap(GRID, GRID, shifted(41)) == 0


def test_a_small_field_of_view_within_a_large_one_overlaps_wholly():
    small = GRID.crop((6, 7, 5), (8, 6, 4))
    assert overlap(small, GRID, np.eye(4)) == 1
    assert overlap(GRID, small, np.eye(4)) == 1


def test_the_message_says_how_far_apart_and_what_to_do():
    image = Volume(np.arange(20 * 24 * 16).reshape(GRID.shape), GRID, "knee")
    pair = VolumePair(image, image)
    check_overlap(pair, shifted(30), "none")
    with pytest.raises(NoOverlapError, match=r"'knee'.*90 mm.*-90, 0, 0 mm.*affine='auto'"):
        check_overlap(pair, shifted(90), "none")
    with pytest.raises(NoOverlapError, match="same body part"):
        check_overlap(pair, shifted(90), "auto")
