from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine.model import InterestModel, MindConfig
from engine.model.registry import Registry
from engine.settings import Settings
from tests.builders import NOON_MS
from tests.trainer.log_builders import draw_groups
from trainer.evaluate import Evaluation, evaluate, split_by_time
from trainer.gate import comparable_version, first_click_ms, objection
from trainer.loop import train
from trainer.options import TrainOptions
from trainer.popular import popular_items
from trainer.publish import prepare
from trainer.samples import ClickLog

CONFIG = MindConfig(dimensions=16, max_clicks=10, hidden=(8,))


def evaluation(**figures: float) -> Evaluation:
    values = {field.name: 0.2 for field in dataclasses.fields(Evaluation)}
    values |= {"gain_over_serving": 0.0, "gain_over_serving_standard_error": 0.01}
    return Evaluation(**{**values, "users": 30, "users_without_window": 0, **figures})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"recall_at_50": 0.2, "popular_recall_at_50": 0.1}, None),
        ({"recall_at_50": 0.1, "popular_recall_at_50": 0.1}, None),
        ({"recall_at_50": 0.09, "popular_recall_at_50": 0.1}, "below"),
        ({"recall_at_50": float("nan")}, "nan"),
        ({"gain_over_serving": -0.004, "gain_over_serving_standard_error": 0.001}, None),
        ({"gain_over_serving": -0.019}, None),
        ({"gain_over_serving": -0.021}, "0.0210 ± 0.0100 below that of the version in service"),
        ({"users": 29, "recall_at_50": 1.0}, "29 users have a later click"),
    ],
)
def test_gate_objects_to_what_is_worse_than_popular_or_the_version_in_service_or_cannot_be_judged(
    figures: dict[str, float], reason: str | None
):
    objected = objection(evaluation(**figures), settings=Settings())

    assert (objected is None) if reason is None else (objected is not None and reason in objected)


def learned(before: ClickLog, *, epochs: float) -> InterestModel:
    options = TrainOptions(batch_size=64, epochs=epochs, threads=1, start_from_cooccurrence=False, learning_rate=0.02)
    return train(before, CONFIG, options)


def test_a_model_is_judged_beside_the_one_in_service_on_the_same_users() -> None:
    before, later = split_by_time(draw_groups(), 0.3)
    good, hasty = learned(before, epochs=6.0), learned(before, epochs=0.1)

    worse = evaluate(hasty, before, later, serving=good)
    alike = evaluate(good, before, later, serving=good)
    alone = evaluate(good, before, later)

    assert worse.serving_recall_at_50 == alike.recall_at_50
    assert worse.gain_over_serving == pytest.approx(worse.recall_at_50 - alike.recall_at_50)
    assert worse.gain_over_serving_standard_error is not None
    assert (alike.gain_over_serving, alike.gain_over_serving_standard_error) == (0.0, 0.0)
    assert alone.gain_over_serving is None


def published(folder: Path, before: ClickLog) -> tuple[Settings, str]:
    settings = Settings(data_dir=folder)
    parts = prepare(
        learned(before, epochs=0.5), popular_items(before), items=before.items, manifest={}, threads=1, seed=1
    )
    return settings, Registry(settings.registry).publish(parts, created_at_ms=NOON_MS)


def test_the_version_in_service_is_compared_with_only_where_it_cannot_have_seen_the_later_clicks(
    tmp_path: Path,
) -> None:
    before, later = split_by_time(draw_groups(), 0.3)
    settings, version = published(tmp_path, before)
    first_ms = first_click_ms(later)
    assert first_ms is not None
    said: list[str] = []

    def found(**training: object) -> InterestModel | None:
        return comparable_version(settings, {"version": version, "training": training}, later, say=said.append)

    assert found(learned_before_ms=first_ms) is not None
    assert said == []
    assert found(learned_before_ms=first_ms + 1) is None
    assert found() is None  # a version of an older build, which did not say
    assert [f"Version {version} may have learned from the later clicks" in line for line in said] == [True, True]
    assert comparable_version(settings, None, later, say=said.append) is None


def test_a_damaged_version_in_service_blocks_nothing(tmp_path: Path) -> None:
    before, later = split_by_time(draw_groups(), 0.3)
    settings, version = published(tmp_path, before)
    weights = next(tmp_path.rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    manifest = {"version": version, "training": {"learned_before_ms": first_click_ms(later)}}

    assert comparable_version(settings, manifest, later, say=lambda line: None) is None
    assert comparable_version(settings, {**manifest, "version": "0009"}, later, say=lambda line: None) is None
