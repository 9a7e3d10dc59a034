"""README and the pages of docs: links lead somewhere, commands exist, and the default model is the one that ships."""

from __future__ import annotations

import re

import typer
from conftest import ROOT
from test_paper_md import fault_of_command

from NeonatalSegLib.cli.app import app
from NeonatalSegLib.models.registry import DEFAULT_MODEL

README = ROOT / "README.md"
PAGES = sorted(
    page for pattern in ("*.md", "docs/**/*.md", "Resources/**/*.md", "Testing/**/*.md") for page in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#\s]+)")
TYPED = re.compile(r"^\s*(neonatalseg [a-z][^`\n]*)$|`(neonatalseg [a-z][^`]*)`", re.MULTILINE)


def commands_of(text: str) -> list[str]:
    """Commands as they are typed: without comments and values, and the first of several that one may choose from."""
    found = []
    for groups in TYPED.findall(re.sub(r"\\\n\s*", " ", text)):
        line = re.sub(r"\s#.*", "", "".join(groups)).replace("experiment ...", "experiment baseline")
        name, command, *rest = (word.split("|")[0] for word in line.split())
        inner = rest[:1] if command in ("models", "experiment") and rest and rest[0][0].isalpha() else []
        found.append(" ".join([name, command, *inner, *(w for w in rest if w.startswith("--") and w != "--help")]))
    return found


def test_links_lead_somewhere() -> None:
    missing = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in PAGES
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert missing == []
    assert len(PAGES) > 25


def test_commands_and_their_options_exist() -> None:
    commands = typer.main.get_command(app)
    lines = [line for page in PAGES for line in commands_of(page.read_text(encoding="utf-8"))]
    assert [fault for line in lines if (fault := fault_of_command(line, commands))] == []
    assert len(lines) > 30


def test_the_readme_speaks_of_the_model_that_ships() -> None:
    text = README.read_text(encoding="utf-8")
    cards = dict(re.findall(r"\[([^\]]+)\]\(Resources/Models/([^/]+)/docs/README\.md\)", text))
    assert cards["the default"] == cards["model card"] == DEFAULT_MODEL
    assert f"`{DEFAULT_MODEL}`" in text.split("## Figures")[1]
