"""The form says what it shows, explains itself, and is as it was at the next start."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import npe2
import pytest
from napari.settings import get_plugin_settings
from qtpy.QtWidgets import QFileDialog, QFormLayout

import napari_shmoareg
from napari_shmoareg.plugin.controls.forms import FILE, LABELS
from napari_shmoareg.plugin.preferences import PLUGIN
from napari_shmoareg.plugin.register.form import (
    CHOICES,
    CUSTOM,
    MAX_STEPS,
    PRESETS,
    SettingsForm,
    from_preferences,
    to_preferences,
)
from napari_shmoareg.plugin.register.panel import PAGE, load_settings, save_settings
from napari_shmoareg.registration.refinement import SMOOTHNESS
from napari_shmoareg.settings import RegistrationRequest, RegistrationSettings, help_texts

OTHERS = [
    RegistrationRequest(),
    RegistrationRequest(
        weights="/data/mine.safetensors", affine="rigid", diffeomorphic=False, device="cpu", size=96
    ),
    RegistrationRequest(
        diffeomorphic=True, size="native", refine=80, similarity="mind", contrast="match"
    ),
]
MANIFEST = Path(napari_shmoareg.__file__).parent / "napari.yaml"


@pytest.fixture
def form(qtbot):
    made = SettingsForm(RegistrationRequest())
    qtbot.addWidget(made)
    return made


@pytest.fixture
def preferences(plugin_settings, npe2pm):
    npe2pm.register(npe2.PluginManifest.from_file(MANIFEST))


def choose(combo, text):
    """As a person does: pick an entry of a list."""
    index = combo.findText(text)
    assert index >= 0, text
    combo.setCurrentIndex(index)
    combo.activated.emit(index)


@pytest.mark.parametrize("settings", OTHERS)
def test_the_form_says_what_it_was_given(form, settings):
    form.settings = settings
    assert form.settings == settings
    assert from_preferences(to_preferences(settings)) == settings


def test_everything_that_a_registration_takes_can_be_chosen():
    taken = {field.name for field in fields(RegistrationSettings)} - {"refine_seconds"}
    assert taken | {"weights"} == set(LABELS)


def test_every_control_says_what_it_does(form):
    assert CHOICES["smoothness"] == tuple(SMOOTHNESS)
    assert set(help_texts(RegistrationRequest)) == set(LABELS) | {"refine_seconds"} and all(
        len(text) > 30 for text in help_texts(RegistrationRequest).values()
    )
    rows = form.layout()
    for row in range(rows.rowCount()):
        for part in (QFormLayout.ItemRole.LabelRole, QFormLayout.ItemRole.FieldRole):
            assert rows.itemAt(row, part).widget().toolTip()


def test_a_preset_sets_all_but_weights_and_device_and_a_change_makes_it_custom(form):
    form.settings = RegistrationRequest(device="cpu", affine="rigid")
    assert form.preset.currentText() == CUSTOM
    choose(form.preset, "Unlike contrasts")
    assert form.settings == RegistrationRequest(device="cpu", **PRESETS["Unlike contrasts"])
    choose(form.combos["contrast"], "keep")
    assert form.preset.currentText() == CUSTOM


def test_without_refinement_there_is_no_similarity_to_choose(form):
    form.settings = RegistrationRequest(refine=60, similarity="mind")
    form.refine.setValue(0)
    assert form.settings.similarity == "auto" and not form.combos["similarity"].isEnabled()


def test_a_number_of_voxels_is_asked_for_only_where_it_counts(form):
    assert not form.voxels.number.isVisibleTo(form)
    choose(form.voxels.kind, "voxels")
    form.voxels.number.setValue(80)
    assert form.voxels.number.isVisibleTo(form) and form.settings.size == 80


def test_weights_come_from_a_file_and_a_cancelled_dialog_changes_nothing(form, monkeypatch):
    answers = iter([("/data/mine.safetensors", ""), ("", "")])
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: next(answers))
    for _ in range(2):
        choose(form.weights, FILE)
        assert form.settings.weights == "/data/mine.safetensors"
        assert form.weights.currentText() == "mine.safetensors"


def test_shipped_weights_are_offered_and_a_device_that_is_not_there_is_grey(form):
    form.settings = RegistrationRequest(device="cuda")
    form.offer(("small", "paper"), cuda=False)
    assert [form.weights.itemText(n) for n in range(5)] == ["auto", "none", "small", "paper", FILE]
    model = form.combos["device"].model()
    assert (
        not model.item(CHOICES["device"].index("cuda")).isEnabled()
        and form.settings.device == "auto"
    )
    form.offer(("small", "paper"), cuda=True)
    assert model.item(CHOICES["device"].index("cuda")).isEnabled() and form.weights.count() == 5


@pytest.mark.parametrize("settings", OTHERS)
def test_settings_are_there_again_at_the_next_start(preferences, settings):
    from napari import settings as napari_settings

    assert load_settings() == RegistrationRequest()
    save_settings(settings)
    napari_settings._clear_plugin_settings_cache()  # what a new start of napari begins with
    assert load_settings() == settings


def test_a_setting_that_was_written_wrongly_by_hand_is_as_by_default(preferences):
    page = getattr(get_plugin_settings(PLUGIN), PAGE)
    page.size, page.affine = "huge", "rigid"
    assert load_settings() == replace(RegistrationRequest(), affine="rigid")


def test_the_preferences_of_napari_know_every_setting_with_its_choices_and_default(preferences):
    page = getattr(get_plugin_settings(PLUGIN), PAGE)
    schema = type(page).model_json_schema()["properties"]
    assert page.model_dump() == to_preferences(RegistrationRequest())
    assert {name: tuple(part["enum"]) for name, part in schema.items() if "enum" in part} == CHOICES
    assert {name: part["title"] for name, part in schema.items()} == LABELS
    words = help_texts(RegistrationRequest)
    assert all(part["description"] == words[name] for name, part in schema.items())
    assert (schema["refine"]["minimum"], schema["refine"]["maximum"]) == (0, MAX_STEPS)


def test_without_the_plugin_in_napari_nothing_is_kept_and_nothing_fails(plugin_settings):
    save_settings(OTHERS[1])
    assert load_settings() == RegistrationRequest()


def test_a_disk_that_cannot_be_written_is_told(preferences, monkeypatch):
    said = []
    monkeypatch.setattr("napari_shmoareg.plugin.register.panel.show_warning", said.append)
    get_plugin_settings(PLUGIN).config_path.mkdir()  # a folder where the file should be
    save_settings(OTHERS[1])
    assert len(said) == 1 and "could not be saved" in said[0]
