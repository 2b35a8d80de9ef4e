"""A short run of `make damage`."""

from __future__ import annotations

import pytest

from tests.ann.damage import damages, main


def test_no_damaged_index_is_loaded_and_nothing_crashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--flips", "150", "--truncations", "30", "--unhashed", "22"]) == 0

    said = capsys.readouterr().out
    assert "by the manifest, 180 damaged files: 180 refused" in said
    assert "by the structure alone, 22 damaged files" in said


def test_each_damage_differs_from_the_good_file_in_one_bit_or_its_length() -> None:
    good = bytes(range(200))

    made = list(damages(good, flips=50, truncations=20, seed=3))

    flipped = [int.from_bytes(each) ^ int.from_bytes(good) for each in made[:50]]
    assert [each.bit_count() for each in flipped] == [1] * 50
    assert all(len(each) < 200 and good.startswith(each) for each in made[50:])
