"""Commands and Python blocks of the README and the documentation run; links and options are right.

Blocks marked ``text`` need data or a screen: their options are looked up instead.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import napari_shmoareg.io as io
from napari_shmoareg.geometry.resample import resample
from napari_shmoareg.io import write_image
from napari_shmoareg.io.samples import Sample, sample_pair

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLIC_NAMES = (ROOT / "tests" / "public_names.json").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", flags=re.DOTALL)
# What takes minutes or needs a user's data runs shorter, on small data; everything else runs as
# written.
SHORTER = {"500": "2", "1000": "3"}


def _steps(page: Path) -> list[str | list[str]]:
    """Python blocks as text and commands as words, in the order of the page."""
    steps: list[str | list[str]] = []
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            steps.append(code)
            continue
        lines = [line for line in code.splitlines() if line.startswith("shmoareg ")]
        steps += [shlex.split(line, comments=True)[1:] for line in lines]
    return steps


RUNNABLE = [page for page in PAGES if _steps(page)]


@pytest.fixture(scope="module")
def sample() -> Sample:
    """The built-in pair on voxels 2.5 times as wide, so that every page takes seconds."""
    whole = sample_pair()
    names = ("moving", "fixed", "moving_labels", "fixed_labels")
    volumes = {name: getattr(whole.pair, name) for name in names}
    coarse = {
        name: resample(volume, volume.grid.resampled([2.5 * mm for mm in volume.grid.spacing]))
        for name, volume in volumes.items()
    }
    return replace(whole, pair=replace(whole.pair, **coarse))


@pytest.fixture
def small_sample(sample, monkeypatch):
    """Pages and examples that open the built-in pair get the coarse one."""
    monkeypatch.setattr(io, "sample_pair", lambda: sample)


@pytest.fixture(scope="module")
def workplace(sample, tmp_path_factory):
    """A folder with the files that the pages talk of, from the built-in pair."""
    folder = tmp_path_factory.mktemp("docs")
    pair = sample.pair
    write_image(pair.moving, folder / "moving.nii.gz")
    write_image(pair.fixed, folder / "fixed.nii.gz")
    write_image(pair.moving_labels, folder / "moving_labels.nii.gz")
    (folder / "pairs.csv").write_text(
        "moving,fixed\nmoving.nii.gz,fixed.nii.gz\n", encoding="utf-8"
    )
    for place in ("IMAGES", "LABELMAPS"):
        (folder / place).mkdir()
    for number, role in enumerate(("moving", "fixed") * 5):  # ten subjects
        write_image(getattr(pair, role), folder / "IMAGES" / f"{number}_image.nii.gz")
        write_image(getattr(pair, f"{role}_labels"), folder / "IMAGES" / f"{number}_labels.nii.gz")
    write_image(pair.fixed_labels, folder / "LABELMAPS" / "one.nii.gz")
    return folder


@pytest.fixture(scope="module")
def done():
    """Commands that ran already, so that a page which repeats one does not run it again."""
    return set()


def _run_command(command: list[str], workplace: Path) -> None:
    from napari_shmoareg.cli.app import app

    words = [SHORTER.get(word, word) for word in command]
    if "--minutes" in words:
        words[words.index("--minutes") + 1] = "0.01"
    if "--refine" in words:
        words[words.index("--refine") + 1] = "2"
    if words[0] == "pretrain":
        words += ["--recipe", "tiny"]
    if "fine-tune" in words and "--resume" not in words:
        words += ["--split", "2/2/2", "--size", "16"]
    new = "--resume" not in words and words[0] not in ("runs", "evaluate")
    for option in ("--out", "--run") if new else ():
        if option in words:
            shutil.rmtree(workplace / words[words.index(option) + 1], ignore_errors=True)
    if words[0] == "evaluate":
        words += ["--size", "32"]
    if "--controls" in words:
        words += ["--size", "32"]  # some twenty runs of the network
    if words[0] == "benchmark":
        # a few processes instead of a few hundred
        words += ["--methods", "shmoareg,affine", "--pairs", "1"]
    result = CliRunner().invoke(app, words)
    expected = 130 if "--minutes" in words else 0  # which stops it before its last step
    assert result.exit_code == expected, result.output


def test_the_pages_have_commands_and_code():
    steps = [step for page in RUNNABLE for step in _steps(page)]
    assert sum(isinstance(step, list) for step in steps) >= 15
    assert sum(isinstance(step, str) for step in steps) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_what_a_page_shows_runs_in_its_order(
    page, small_sample, workplace, done, monkeypatch, capsys
):
    monkeypatch.chdir(workplace)
    shutil.rmtree("result-folder", ignore_errors=True)
    names: dict = {}
    for step in _steps(page):
        if isinstance(step, str):
            exec(compile(step, str(page), "exec"), names)
        elif tuple(step) not in done:
            _run_command(step, workplace)
            done.add(tuple(step))
    if page.name == "tutorial-experts.md":
        assert np.isfinite(names["result"].warped.values).all()
        assert "decoder-2-x" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_of_a_page_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link.split("#")[0]).exists()]
    missing += [link for link in links if "#" in link and not _has_anchor(page, link)]
    assert missing == []


def _has_anchor(page: Path, link: str) -> bool:
    """Whether the linked page has such a heading, as MkDocs and GitHub write it."""
    name, _, anchor = link.partition("#")
    text = (page.parent / name if name else page).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return anchor in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]


def test_every_option_that_a_page_names_exists():
    names = set(re.findall(r"--[a-z0-9][a-z0-9-]*", PUBLIC_NAMES))
    other = {"--plugin", "--help", "--data"}  # of napari, typer and a script of benchmarks/
    wrong = {}
    for page in PAGES:
        found = re.findall(
            r"(?<![\w-])--(?:\[no-\])?[a-z][a-z0-9-]*", page.read_text(encoding="utf-8")
        )
        missing = {option.replace("[no-]", "") for option in found} - names - other
        if missing:
            wrong[page.name] = missing
    assert wrong == {}


def test_the_generated_lists_are_complete(monkeypatch):
    mkdocs = SimpleNamespace(MkDocsConfig=None, File=None, Files=None, Page=None)
    for name in ("config.defaults", "structure.files", "structure.pages"):
        monkeypatch.setitem(sys.modules, f"mkdocs.{name}", mkdocs)
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    readings = list(hooks["our_readings"]())
    parts = [f"napari_shmoareg/{package}" for package in hooks["READ_FROM"]]
    marks = sum(
        len(re.findall(r"Ours:", path.read_text(encoding="utf-8")))
        for part in parts
        for path in ROOT.glob(f"{part}/**/*.py")
    )
    assert len(readings) >= 0.9 * marks > 20
    assert "model.config.SHMoARegConfig.window" in dict(readings)
    commands = hooks["command_line"]()
    for name in ("register", "fine-tune", "benchmark", "inspect", "evaluate", "pretrain"):
        assert f"## shmoareg {name}\n" in commands
    assert "<code>--smoothness" in commands and "[required]" in commands
    assert "shmoareg[peers]" in commands


def test_every_page_is_in_the_navigation():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert [name for name in pages if f" {name}\n" not in site] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_an_example_is_short_and_runs(name, small_sample, workplace, tmp_path, monkeypatch, capfd):
    example = ROOT / "examples" / f"{name}.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) < 30
    words = [str(workplace / "IMAGES"), "run", "2"] if name == "fine_tune_folder" else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *words])
    runpy.run_path(str(example), run_name="__main__")
    assert capfd.readouterr().out.strip()
