from __future__ import annotations

from pathlib import Path

import pytest

from examples import experiments

SMALL = [
    "--clicks",
    "4000",
    "--threads",
    "1",
    "--set",
    "epochs=1.0",
    "--set",
    "dimensions=16",
    "--set",
    "negatives=256",
]


def test_a_question_is_answered_by_every_variant_with_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are optional and matplotlib is not installed")

    answers = experiments.main(["interests", *SMALL, "--plot", str(tmp_path / "answer.png")])

    found = {answer.name: answer for answer in answers}
    assert list(found) == list(experiments.QUESTIONS["interests"][1])
    assert found["K = 1"].cosine is None
    assert found["K = 1"].in_use == 1.0
    assert found["K'_u, at most 4"].in_use < found["K = 4 for everybody"].in_use == 4.0
    assert all(0.0 < answer.recall_at_50.mean < 1.0 and answer.recall_at_50.error > 0 for answer in answers)
    assert (tmp_path / "answer.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("question", ["kmeans", "assign", "power"])
def test_the_variants_of_a_question_are_different_models(question: str) -> None:
    answers = experiments.main([question, *SMALL])

    assert len({(answer.recall_at_50.mean, answer.cosine) for answer in answers}) == len(answers)
