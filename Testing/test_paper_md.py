"""docs/paper.md: every file, name, link and command that it points to exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import typer
from conftest import ROOT

from NeonatalSegLib.cli.app import app

PAGE = ROOT / "docs" / "paper.md"
TEXT = PAGE.read_text(encoding="utf-8")
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", TEXT)))
CODE = re.compile(r"([\w./-]+\.(?:py|md|json))(?::([A-Za-z_][\w.]*))?")
REFERENCES = [q for q in QUOTED if CODE.fullmatch(q)]
COMMANDS = [q for q in QUOTED if q.startswith("neonatalseg ")]
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)", TEXT)))
ROWS = [line for line in TEXT.splitlines() if line.startswith("|") and not line.startswith("|---")]


@cache
def names_in(file: Path) -> frozenset[str]:
    """What a Python file defines: functions, classes, variables, and the methods and attributes of classes."""
    return frozenset(_defined(ast.parse(file.read_text(encoding="utf-8")).body, ""))


def _defined(body: list[ast.stmt], prefix: str) -> list[str]:
    names: list[str] = []
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            names += _defined(node.body, f"{prefix}{node.name}.")
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [prefix + n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return names


def fault_of(reference: str) -> str:
    """What is wrong with ``path:name``; empty where nothing is."""
    found = CODE.fullmatch(reference)
    assert found is not None
    path, name = found.groups()
    files = [folder / path for folder in (ROOT / "NeonatalSegLib", ROOT / "Testing", ROOT) if (folder / path).is_file()]
    if not files:
        return f"there is no file {path}"
    return "" if name is None or name in names_in(files[0]) else f"{path} defines no {name}"


def fault_of_command(line: str, command: Any) -> str:
    """What is wrong with ``neonatalseg WORD ... --option``."""
    words = [word for word in line.split()[1:] if not word.startswith("--")]
    while words and hasattr(command, "commands"):
        word = words.pop(0)
        if word not in command.commands:
            return f"there is no command {word} in {line}"
        command = command.commands[word]
    known = {option for parameter in command.params for option in parameter.opts}
    unknown = [word for word in line.split() if word.startswith("--") and word not in known]
    return f"{line} has no option {unknown[0]}" if unknown else ""


def test_the_code_that_is_pointed_to_exists() -> None:
    assert [fault for reference in REFERENCES if (fault := fault_of(reference))] == []


def test_commands_and_their_options_exist() -> None:
    commands = typer.main.get_command(app)
    assert [fault for line in COMMANDS if (fault := fault_of_command(line, commands))] == []


def test_links_lead_somewhere() -> None:
    assert [link for link in LINKS if not (PAGE.parent / link).exists()] == []


def test_faults_are_found() -> None:
    commands = typer.main.get_command(app)
    assert (
        fault_of("networks/losses.py:DiceCELoss") == fault_of("training/task.py:SegmentationTask.training_step") == ""
    )
    assert fault_of("networks/losses.py:Dice") == "networks/losses.py defines no Dice"
    assert fault_of("loss.py") == "there is no file loss.py"
    assert fault_of_command("neonatalseg split --kind paper", commands) == ""
    assert "no command splits" in fault_of_command("neonatalseg splits", commands)
    assert "no option --sort" in fault_of_command("neonatalseg split --sort paper", commands)


def test_nothing_that_looks_like_a_reference_is_passed_over() -> None:
    """A slip of the pen would otherwise be no reference, and so never wrong."""
    left = [q for q in QUOTED if (".py" in q or "/" in q) and not q.endswith("/") and q not in REFERENCES]
    assert left == ["test_splits.py:..."]  # the explanation at the head of the page
    assert len(REFERENCES) > 80 and len(COMMANDS) > 5 and len(LINKS) > 4


def test_every_equation_table_and_section_has_its_place() -> None:
    numbered = [f"{kind} {number}" for kind in ("Equation", "Table") for number in (1, 2, 3)]
    for what in (*numbered, "AgeU-Net", "six strategies"):
        assert any(what in row.split("|")[1] for row in ROWS), what
    for section in ("Dataset", "Pipeline design", "Label budgeting", "Transfer learning", "Results", "Broader impact"):
        assert re.search(rf"^## .*{section}$", TEXT, re.MULTILINE), section


def test_rows_are_whole() -> None:
    assert {row.count("|") for row in ROWS} == {4, 5}  # three columns beyond the paper, else four
