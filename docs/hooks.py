"""What MkDocs adds to the pages: pictures of resources/, the command line, and our readings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files of the repository that the pages link to by their path, and where the site has them.
MOVED = {"../resources/": "resources/", "../CONTRIBUTING.md": "contributing.md"}

READ_FROM = ("model", "registration", "training", "experts")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures, CHANGELOG.md and CONTRIBUTING.md, which lie outside docs/."""
    for picture in sorted(ROOT.glob("resources/*.png")):
        files.append(File.generated(config, f"resources/{picture.name}", abs_src_path=str(picture)))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Resolve links out of docs/ and fill in the generated lists."""
    for there, here in MOVED.items():
        markdown = markdown.replace(there, here)
    if "<!-- command-line -->" in markdown:
        markdown = markdown.replace("<!-- command-line -->", command_line())
    if "<!-- our-readings -->" in markdown:
        rows = [f"- `{name}`: {text}" for name, text in our_readings()]
        markdown = markdown.replace("<!-- our-readings -->", "\n".join(rows))
    return markdown


def our_readings() -> Iterator[tuple[str, str]]:
    """Name and text of every "Ours:" in the packages that the paper is about."""
    paths = [sorted(ROOT.glob(f"napari_shmoareg/{package}/**/*.py")) for package in READ_FROM]
    for path in chain.from_iterable(paths):
        source = path.read_text(encoding="utf-8")
        module = ".".join(path.relative_to(ROOT / "napari_shmoareg").with_suffix("").parts)
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.ClassDef() | ast.FunctionDef():
                    name, text = f"{module}.{node.name}", ast.get_docstring(node)
                case ast.Module():
                    name, text = module, ast.get_docstring(node)
                case _:
                    continue
            for part, reading in _paragraphs(text or ""):
                yield f"{name}{part}", reading
        for comment in re.findall(r"(?:^[^\n\"]*# .*\n)(?:^ *#.*\n)*", source, re.MULTILINE):
            for _, reading in _paragraphs(re.sub(r"^[^#]*# ?", "", comment, flags=re.MULTILINE)):
                yield module, reading


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """What follows each "Ours:" to the end of its paragraph, in one line, and of which field."""
    for paragraph in re.split(r"\n\s*\n|\n(?=\w+(?:, \w+)* : )", text):
        before, found, words = paragraph.partition("Ours:")
        if found:
            field = re.match(r"(\w+(?:, \w+)*) : ", before)
            yield f".{field[1]}" if field else "", " ".join(words.split())


def command_line() -> str:
    """Every command with its arguments and options, from its own help."""
    import click
    import typer

    from napari_shmoareg.cli.app import app

    lines: list[str] = []

    def add(command: click.Command, path: str, parent: click.Context | None) -> None:
        context = click.Context(command, info_name=path.split()[-1], parent=parent)
        lines.extend(
            [f"## {path}" if parent else "", "", (command.help or "").replace("\f", ""), ""]
        )
        rows = [record for p in command.get_params(context) if (record := _record(p, context))]
        if rows and parent:
            lines.extend(["| | |", "| --- | --- |"])
            lines.extend(f"| <code>{name}</code> | {text} |" for name, text in rows)
            lines.append("")
        for name in getattr(command, "commands", {}):
            add(command.commands[name], f"{path} {name}", context)  # type: ignore[attr-defined]

    add(typer.main.get_command(app), "shmoareg", None)
    return "\n".join(lines)


def _record(parameter: object, context: object) -> tuple[str, str] | None:
    """Name and help of an argument or option, for a row of a table."""
    record = parameter.get_help_record(context)  # type: ignore[attr-defined]
    if record is None or record[0].startswith("--help"):
        return None
    name, text = (" ".join(part.split()) for part in record)
    return tuple(part.replace("<", "&lt;").replace("|", "&#124;") for part in (name, text))
