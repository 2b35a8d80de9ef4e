"""The pages keep their word: links lead somewhere, code runs, named commands exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for found, text in BLOCK.findall(page.read_text()):
            if found == language:
                yield page.name, text


def names_of_pages() -> list[str]:
    return [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("name", names_of_pages())
def test_every_link_between_pages_leads_somewhere(name: str):
    page = ROOT / name
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", names_of_pages())
def test_every_file_a_page_names_exists(name: str):
    named = re.findall(
        r"`((?:engine|trainer|tests|deploy|benchmarks|docs|examples)/[\w./-]+\.\w+)`", (ROOT / name).read_text()
    )

    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("page", "text"), list(blocks("json")))
def test_json_on_a_page_is_json(page: str, text: str):
    for part in text.strip().split("\n\n"):
        json.loads(part)


@pytest.mark.parametrize(("page", "text"), list(blocks("python")))
def test_python_on_a_page_runs(page: str, text: str):
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, timeout=120)

    assert ran.returncode == 0, ran.stderr


def commands_on_pages() -> list[tuple[str, ...]]:
    found = set()
    for page in PAGES:
        for line in re.findall(r"`(mindstream [^`\n]+)`", page.read_text()):
            found.add(tuple(words_before_options(line)))
        for text in (
            text for language, text in BLOCK.findall(page.read_text()) if language in ("sh", "console", "bash")
        ):
            for line in re.findall(r"^\$? ?(mindstream .+)$", text, re.MULTILINE):
                found.add(tuple(words_before_options(line)))
    return sorted(found)


def words_before_options(line: str) -> list[str]:
    words = shlex.split(line.split("|")[0].split("#")[0])[1:]
    plain = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
    return plain[: 2 if plain and plain[0] in ("dead-letters", "data", "topics", "windows", "models") else 1]


@pytest.mark.parametrize("command", commands_on_pages())
def test_every_command_a_page_names_exists(command: tuple[str, ...]):
    if not command:
        return
    ran = subprocess.run(
        [sys.executable, "-m", "engine.cli", *command, "--help"], capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 0, ran.stderr


def test_architecture_page_lists_every_file_or_its_folder():
    page = (ROOT / "docs" / "architecture.md").read_text()
    paths = [path.relative_to(ROOT) for package in ("engine", "trainer") for path in (ROOT / package).rglob("*.py")]

    listed = {path for path in paths if f"`{path}`" in page or f"`{path.parent}/`" in page}

    assert {path for path in paths if path.name != "__init__.py"} - listed == set()


def test_make_targets_named_on_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text())}

    assert named - targets == set()
