"""File > Save: what comes back from the disk is what the layer stands for, where it stands."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from napari.layers import Image, Labels, Vectors

from napari_shmoareg.errors import InputError
from napari_shmoareg.io import read_image, read_transform
from napari_shmoareg.plugin.layers import layers_of, layers_of_pair
from napari_shmoareg.plugin.placement import tag
from napari_shmoareg.plugin.writers import write_displacement, write_image, write_labels


@pytest.fixture
def viewer(plugin, make_napari_viewer):
    """Not shown: nothing is looked at here."""
    return make_napari_viewer()


@pytest.fixture
def opened(viewer, registration):
    """A viewer with a registration."""
    from napari_shmoareg.plugin.layers import add_layers

    add_layers(viewer, [*layers_of_pair(registration.pair), *layers_of(registration, 1, maps=True)])
    return viewer


@pytest.mark.parametrize(
    ("name", "attribute"),
    [("#1 warped", "warped"), ("#1 warped labels", "warped_labels"), ("#1 Jacobian", "jacobian")],
)
def test_an_oblique_result_is_saved_with_its_own_voxels_on_its_own_grid(
    opened, registration, tmp_path, name, attribute
):
    layer, volume = opened.layers[name], getattr(registration, attribute)
    assert tag(layer, "copied") and layer.data.shape != volume.values.shape[::-1]
    assert layer.save(str(tmp_path / "saved.nii.gz"), plugin="shmoareg") == [
        str(tmp_path / "saved.nii.gz")
    ]
    back = read_image(tmp_path / "saved.nii.gz", labels=volume.is_labels)
    assert (back.values == volume.values).all() and back.grid.same_space(volume.grid)
    is_labels = nibabel.load(tmp_path / "saved.nii.gz").header.get_intent()[0] == "label"
    assert is_labels == volume.is_labels


def test_painted_labels_are_saved_as_painted_and_where_they_are_seen(opened, tmp_path):
    layer = opened.layers["fixed_labels"]
    place = tuple(n // 2 for n in layer.data.shape)
    layer.data = layer.data.copy()
    layer.data[place] = 77
    own = tag(layer, "volume").grid
    layer.save(str(tmp_path / "painted.nii"), plugin="shmoareg")
    back = read_image(tmp_path / "painted.nii", labels=True)
    painted = np.argwhere(back.values == 77)
    assert len(painted) and back.grid.same_space(own)
    for index in painted:
        assert np.rint(layer.world_to_data(back.grid.to_world(index)[::-1])) == pytest.approx(place)


@pytest.mark.parametrize("name", ["#1 displacement", "#1 deformation grid"])
def test_arrows_and_grid_are_saved_as_the_whole_displacement(opened, registration, tmp_path, name):
    opened.layers[name].save(str(tmp_path / "u.nii.gz"), plugin="shmoareg")
    transform = read_transform(tmp_path / "u.nii.gz")
    assert transform.field.vectors == pytest.approx(registration.displacement.vectors, abs=1e-6)
    assert transform.field.grid.same_space(registration.displacement.grid)


def test_a_foreign_layer_is_saved_where_it_lies(tmp_path):
    layer = Image(np.random.default_rng(0).random((4, 5, 6)), scale=(3, 2, 1), translate=(9, 8, 7))
    data, meta, _ = layer.as_layer_data_tuple()
    write_image(str(tmp_path / "foreign.nii.gz"), data, meta)
    back = read_image(tmp_path / "foreign.nii.gz")
    assert back.grid.to_world((1, 2, 3))[::-1] == pytest.approx(layer.data_to_world((3, 2, 1)))
    assert back.values[1, 2, 3] == pytest.approx(layer.data[3, 2, 1])


def refused(write, layer, path, says):
    data, meta, _ = layer.as_layer_data_tuple()
    with pytest.raises(InputError, match=says):
        write(str(path), data, meta)


def test_what_cannot_be_saved_is_refused_in_plain_words_and_leaves_nothing(tmp_path):
    refused(write_image, Image(np.zeros((3, 4, 5, 6)), name="4D"), tmp_path / "a.nii.gz", "4 axes")
    refused(
        write_labels, Labels(np.ones((3, 4, 5), int)), tmp_path / "a.png", r"\.nii or \.nii\.gz"
    )
    refused(write_image, Image(np.ones((3, 4, 5))), tmp_path / "no" / "a.nii", "does not exist")
    refused(
        write_displacement,
        Vectors(np.zeros((2, 2, 3)), name="lines"),
        tmp_path / "a.nii",
        "no registration",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_could_not_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "a.nii.gz").write_bytes(b"before")

    def fill(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("napari_shmoareg.io.nifti.write", fill)
    refused(write_image, Image(np.ones((3, 4, 5))), tmp_path / "a.nii.gz", "disk is full")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.nii.gz", b"before")]
