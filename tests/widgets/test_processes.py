"""napari itself, started as people start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from napari_shmoareg.io import write_image, write_registration

pytestmark = pytest.mark.slow

LOOK = Path(__file__).with_name("look_and_quit.py")


@pytest.fixture
def napari(tmp_path):
    """Start napari with settings of its own; returns what was seen once layers and panels were
    there.
    """

    def start(*arguments, wait_for, binding="pyqt6", kept=""):
        (tmp_path / "settings.yaml").write_text(
            f"application:\n  startup_script: {LOOK}\n", encoding="utf-8"
        )
        if kept:
            (tmp_path / "shmoareg.yaml").write_text(kept, encoding="utf-8")
        about = {
            "PYTHONIOENCODING": "utf-8",
            "NAPARI_CONFIG": str(tmp_path / "settings.yaml"),
            "QT_API": binding,
        }
        about |= {"LOOK_INTO": str(tmp_path), "LOOK_FOR": wait_for}
        program = Path(sys.executable).with_name("napari")
        command = [str(part) for part in (program, *arguments)]
        run = subprocess.run(
            command,
            env=os.environ | about,
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        assert (tmp_path / "seen.json").exists(), run.stdout + run.stderr
        assert run.returncode == 0, run.stdout + run.stderr
        return json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))

    return start


def test_two_files_open_in_their_roles_with_the_panel_and_a_damaged_one_is_told(
    napari, phantoms, tmp_path
):
    for role, volume in phantoms.volumes.items():
        write_image(volume, tmp_path / f"{role}.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    names = ["moving.nii.gz", "fixed.nii.gz", "bad.nii.gz"]
    seen = napari("--plugin", "shmoareg", *names, wait_for="2 Register")
    assert seen["layers"] == {
        "moving": ["image", "moving", True],
        "fixed": ["image", "fixed", True],
    }
    assert seen["docked"] == ["Register (shmoareg)"] and seen["binding"].lower() == "pyqt6"
    assert seen["colours"] > 20, "the canvas shows no image"
    assert seen["whole"], "the images are not shown whole"
    assert len(seen["errors"]) == 1 and "bad.nii.gz" in seen["errors"][0]


def test_a_bare_w_opens_the_register_panel_and_loads_no_torch(napari):
    seen = napari("-w", "shmoareg", wait_for="0 Register")
    assert seen["docked"] == ["Register (shmoareg)"] and not seen["torch"] and seen["errors"] == []


def test_the_demo_registers_and_shows_its_experts(napari):
    quick = 'registration:\n  size: "48"\n  affine: none\n'
    seen = napari(
        "--plugin", "shmoareg", "shmoareg://demo", wait_for="7 Register Experts", kept=quick
    )
    assert seen["errors"] == [] and seen["docked"] == ["Experts (shmoareg)", "Register (shmoareg)"]
    roles = {role for _, role, _ in seen["layers"].values()}
    assert roles >= {
        "moving",
        "fixed",
        "moving_labels",
        "fixed_labels",
        "warped",
        "expert_map",
    }
    assert [
        name for name, (_, role, shown) in seen["layers"].items() if shown and role == "expert_map"
    ] == ["#1 expert x (full)"]
    assert seen["colours"] > 20


def test_a_registration_folder_opens_under_pyside6_too(napari, registration, tmp_path):
    write_registration(registration, tmp_path / "results", weights="untrained", figures=False)
    seen = napari("--plugin", "shmoareg", "results", wait_for="6 Experts", binding="pyside6")
    assert seen["binding"].lower() == "pyside6" and seen["errors"] == []
    assert seen["docked"] == ["Experts (shmoareg)"] and seen["layers"]["#1 warped"] == [
        "image",
        "warped",
        True,
    ]
    assert seen["colours"] > 20
