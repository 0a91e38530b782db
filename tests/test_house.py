"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import napari_shmoareg

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "napari_shmoareg"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 640  # lines
LONGEST_FUNCTION = 100  # lines below its signature and docstring
HEAVY = "torch napari qtpy PyQt6 PySide6 SimpleITK nibabel scipy matplotlib numpy".split()


def _definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _statement_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    documented = ast.get_docstring(function) is not None and len(function.body) > 1
    return function.end_lineno - function.body[1 if documented else 0].lineno + 1


def test_every_import_respects_the_floors():
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",  # its output holds signs beyond ASCII, whatever the locale
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_is_heavy_is_imported_only_where_it_is_used():
    """Nothing by the package, no torch by a panel, reader or writer, no SimpleITK before it
    aligns.
    """
    files = sorted((PACKAGE / "plugin").rglob("[!_]*.py"))
    modules = [".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in files]
    assert "napari_shmoareg.plugin.register.panel" in modules
    code = (
        "import sys, napari_shmoareg; from importlib import import_module; "
        f"print([m for m in {HEAVY!r} if m in sys.modules]); "
        f"print([name for name in {modules!r} if import_module(name) and 'torch' in sys.modules]); "
        "import napari_shmoareg.registration.register; print('SimpleITK' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["[]", "[]", "False"]


def test_the_face_gives_every_name_it_lists():
    for name in napari_shmoareg.__all__:
        assert getattr(napari_shmoareg, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = napari_shmoareg.no_such_name


def test_the_version_is_written_once_and_installed():
    assert version("shmoareg") == napari_shmoareg.__version__
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project and project["dynamic"] == ["version"]


def test_the_command_is_installed_and_callable():
    (script,) = entry_points(group="console_scripts", name="shmoareg")
    assert callable(script.load())


def test_files_and_functions_stay_readable_and_captioned():
    faults = []
    for file in FILES:
        text, name = file.read_text(encoding="utf-8"), file.relative_to(PACKAGE)
        tree = ast.parse(text)
        if len(text.splitlines()) > LONGEST_FILE:
            faults.append(f"{name}: more than {LONGEST_FILE} lines")
        if not ast.get_docstring(tree):
            faults.append(f"{name}: no caption")
        for node in _definitions(tree):
            if _statement_lines(node) > LONGEST_FUNCTION:
                faults.append(f"{name}: more than {LONGEST_FUNCTION} lines in {node.name}")
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            )
            if public and not ast.get_docstring(node):
                faults.append(f"{name}: {node.name} has no docstring")
    assert not faults


def test_no_name_hides_what_a_file_is_for():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}
    assert not {p.stem for p in PACKAGE.rglob("*")} & vague


def test_no_closure_hangs_on_a_widgets_destruction():
    """A slot of `destroyed` can be collected before it is called, which kills napari:
    `weakref.finalize` instead.
    """
    assert not [file for file in FILES if "destroyed.connect(" in file.read_text(encoding="utf-8")]


def test_our_own_choices_can_be_searched():
    marked = [f for f in FILES if "Ours:" in f.read_text(encoding="utf-8")]
    assert {f.relative_to(PACKAGE).parts[0] for f in marked} >= {
        "model",
        "registration",
        "training",
    }


def test_nothing_is_unpickled_and_no_work_is_left_undone():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
        imported = {name.name.split(".")[0] for node in imports for name in node.names}
        assert not imported & {"pickle", "joblib", "dill"}, file
        assert "NotImplementedError" not in text and "TODO" not in text and "FIXME" not in text, (
            file
        )


def test_a_panel_imports_no_other_panel():
    """What two panels need stands in plugin.controls; Register alone interrupts a comparison."""
    panels = {path.parent.name for path in (PACKAGE / "plugin").glob("*/panel.py")}
    assert len(panels) == 5
    found = set()
    for file in FILES:
        parts = file.relative_to(PACKAGE).parts
        if parts[0] != "plugin" or parts[1] not in {*panels, "controls"}:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                package = node.module.split(".")
                if package[:2] == ["napari_shmoareg", "plugin"] and len(package) > 3:
                    if package[2] in panels - {parts[1]}:
                        found.add(("/".join(parts[1:]), ".".join(package[2:])))
    assert found == {("register/job.py", "quality.compare")}
