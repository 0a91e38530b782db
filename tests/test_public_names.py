"""What users hold on to: names of the library, commands and their options, contributions to napari.

The list stands in public_names.json.  A name that goes, or comes, is a decision: change the list
with the code."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import typer
import yaml

import napari_shmoareg

LIST = Path(__file__).with_name("public_names.json")
PACKAGES = ("", ".geometry", ".model", ".io")


def options_of(command) -> list[str]:
    return sorted(
        word
        for parameter in command.params
        for word in (*parameter.opts, *parameter.secondary_opts)
    )


def commands_of(command, name: str = "shmoareg") -> dict[str, list[str]]:
    found = {name: options_of(command)}
    for below, other in getattr(command, "commands", {}).items():
        found |= commands_of(other, f"{name} {below}")
    return found


def public_names() -> dict[str, object]:
    from napari_shmoareg.cli import app as cli

    manifest = yaml.safe_load(
        (Path(napari_shmoareg.__file__).parent / "napari.yaml").read_text(encoding="utf-8")
    )
    contributions = manifest["contributions"]
    return {
        "library": {
            p or ".": sorted(import_module(f"napari_shmoareg{p}").__all__) for p in PACKAGES
        },
        "commands": commands_of(typer.main.get_command(cli.app)),
        "napari": {
            "commands": sorted(command["id"] for command in contributions["commands"]),
            "widgets": sorted(widget["display_name"] for widget in contributions["widgets"]),
        },
    }


def test_public_names_are_those_of_the_list():
    assert public_names() == json.loads(LIST.read_text(encoding="utf-8"))
