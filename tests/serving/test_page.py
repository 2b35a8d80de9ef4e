"""The page's files, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.serving.api import create_app
from engine.serving.page import FILES, FOLDER
from engine.serving.service import QueryService
from engine.settings import Settings
from tests.serving.parts import ask


@pytest.mark.parametrize("path", FILES)
async def test_each_file_is_served_under_a_policy_that_lets_nothing_else_in(tmp_path: Path, path: str):
    app = create_app(QueryService(Settings(data_dir=tmp_path, broker_port=1)))

    answer = await ask(app, "GET", path)

    assert answer.status == 200
    assert answer.body == (FOLDER / FILES[path][0]).read_bytes()
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("name", [name for name, _ in FILES.values()])
def test_no_file_names_an_address_elsewhere(name: str):
    text = (FOLDER / name).read_text()

    assert set(re.findall(r"(?:https?:)?//[a-z0-9.]+", text.replace("http://www.w3.org/2000/svg", ""))) == set()


def test_text_enters_the_document_as_text_only():
    script = (FOLDER / "page.js").read_text()

    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


def test_the_document_holds_no_inline_script_or_style():
    document = (FOLDER / "page.html").read_text()

    assert not re.findall(r"\son[a-z]+=|\sstyle=|<style|<script(?![^>]*src=)", document)


def test_every_element_that_the_script_asks_for_is_in_the_document():
    document, script = (FOLDER / "page.html").read_text(), (FOLDER / "page.js").read_text()

    asked = set(re.findall(r'(?:byId|setText)\("([a-z0-9-]+)"', script))

    assert asked <= set(re.findall(r'id="([^"]+)"', document))
