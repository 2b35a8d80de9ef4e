from __future__ import annotations

import itertools

import pytest

from engine.errors import LogError
from engine.log import Admin, topic_epoch
from engine.settings import Settings
from engine.streams.topics import TOPICS, create_topics, describe_topics

_prefixes = (f"topics{number}-" for number in itertools.count())


@pytest.fixture
def settings(broker: Settings) -> Settings:
    return broker.model_copy(update={"topic_prefix": next(_prefixes), "clicks_partitions": 3})


def test_contract_names_these_topics():
    assert [spec.name for spec in TOPICS] == [
        "clicks",
        "items",
        "models",
        "erasures",
        "recall-lists",
        "clicks.dead-letters",
    ]


@pytest.mark.kafka
async def test_topics_are_made_once_with_what_the_contract_says(settings: Settings):
    made = await create_topics(settings)
    again = await create_topics(settings)

    assert made == [settings.topic(spec.name) for spec in TOPICS]
    assert again == []
    async with Admin(settings) as admin:
        configs = await admin.configs(made)
        partitions = {name: count for name, count in (await admin.partitions()).items() if name in made}
    assert partitions == dict(zip(made, [3, 1, 1, 1, 3, 1], strict=True))
    clicks, lists = configs[settings.topic("clicks")], configs[settings.topic("recall-lists")]
    assert (clicks["message.timestamp.type"], clicks["retention.ms"]) == ("LogAppendTime", "-1")
    assert (lists["cleanup.policy"], lists["compression.type"]) == ("compact", "zstd")
    assert (lists["segment.bytes"], lists["segment.ms"]) == ("67108864", "3600000")
    assert lists["delete.retention.ms"] == str(7 * 24 * 3_600_000)
    dead_letters = configs[settings.topic("clicks.dead-letters")]
    assert set(dead_letters["cleanup.policy"].split(",")) == {"compact", "delete"}
    assert {config["min.insync.replicas"] for config in configs.values()} == {"1"}


@pytest.mark.kafka
async def test_topics_can_be_used_as_soon_as_they_are_made(settings: Settings):
    await create_topics(settings)

    assert (await topic_epoch(settings, "recall-lists")).partitions == 3


@pytest.mark.kafka
async def test_other_partition_count_is_an_error_that_names_both(settings: Settings):
    await create_topics(settings)

    with pytest.raises(LogError, match=r"topic .*clicks differs: it has 3 partitions, expected 5; set MINDSTREAM_"):
        await create_topics(settings.model_copy(update={"clicks_partitions": 5}))


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("topic", "configs", "difference"),
    [
        (
            "clicks",
            {"message.timestamp.type": "CreateTime"},
            "type is CreateTime, expected LogAppendTime",
        ),
        ("recall-lists", {"cleanup.policy": "delete"}, "cleanup.policy is delete, expected compact"),
        ("clicks", {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "compact"}, "expected delete"),
    ],
)
async def test_config_that_breaks_a_promise_is_named(
    settings: Settings, topic: str, configs: dict[str, str], difference: str
):
    async with Admin(settings) as admin:
        await admin.create(settings.topic(topic), partitions=3, replicas=1, configs=configs)

    with pytest.raises(LogError, match=difference):
        await create_topics(settings)


@pytest.mark.kafka
async def test_description_tells_missing_topics_from_right_ones(settings: Settings):
    before = await describe_topics(settings)
    await create_topics(settings)
    after = await describe_topics(settings)

    assert [row.partitions for row in before] == [None] * len(TOPICS)
    assert not any(row.is_right for row in before)
    assert all(row.is_right for row in after)
    assert [row.name for row in after] == [settings.topic(spec.name) for spec in TOPICS]


@pytest.mark.kafka
async def test_more_replicas_than_brokers_are_refused_with_the_clusters_words(settings: Settings):
    with pytest.raises(LogError, match=r"clicks was refused by the cluster: .*replic"):
        await create_topics(settings.model_copy(update={"replication_factor": 3}))
