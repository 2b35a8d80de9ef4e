from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from examples import tutorial
from tests.test_docs import ROOT


def test_the_tutorial_runs_on_the_simulated_shop_and_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    share = tutorial.main(["--clicks", "4000", "--epochs", "1", "--top", "20"])

    said = capsys.readouterr().out
    assert 0.0 < share <= 1.0
    assert [line[0] for line in said.splitlines() if line[0].isdigit()] == list("123456")
    assert "profile ('age', 'country')" in said
    assert "item features ('brand', 'category', 'department', 'price_band', 'shop')" in said


def test_the_tutorial_reads_a_folder_of_the_shape_of_ml_1m(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Two groups of films and of users; the later clicks of each group are films of its own.
    clicks = [(user, 10 * (user % 2) + (user + at) % 9, 1_000 * at + user) for at in range(8) for user in range(1, 21)]
    write(tmp_path / "interactions.tsv.gz", "user_id\titem_id\ttimestamp", clicks)
    write(
        tmp_path / "users.tsv.gz",
        "user_id\tgender\tage\toccupation\tzip",
        [(u, "FM"[u % 2], 25, 3, u) for u in range(1, 21)],
    )
    films = [(film, f"Film {film}", "Comedy|Drama" if film < 10 else "Horror") for film in range(20)]
    write(tmp_path / "items.tsv.gz", "item_id\ttitle\tgenres", films)

    share = tutorial.main([str(tmp_path), "--epochs", "2", "--top", "5"])

    said = capsys.readouterr().out
    assert share > 0.0
    assert "profile ('age', 'gender', 'occupation')" in said
    assert "item features ('category',)" in said


def test_make_checks_the_examples() -> None:
    assert "ruff check engine trainer tests benchmarks deploy examples" in (ROOT / "Makefile").read_text()


def write(path: Path, header: str, rows: list[tuple[object, ...]]) -> None:
    lines = [header, *("\t".join(str(value) for value in row) for row in rows)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
