"""Topics made, described and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from engine.log.connection import REQUEST_TIMEOUT_MS, raise_for, translated
from engine.log.epoch import wait_until_visible
from engine.settings import Settings


class Admin:
    """Makes, describes and deletes topics by their full names; `async with Admin(settings) as admin`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None

    async def __aenter__(self) -> Self:
        options = self._settings.kafka_client_options()
        self._client = AIOKafkaAdminClient(**options, request_timeout_ms=REQUEST_TIMEOUT_MS)
        try:
            with translated(self._settings.bootstrap_servers):
                await self._client.start()
        except BaseException:
            await self._client.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def partitions(self) -> dict[str, int]:
        """Return the partition count of every topic in the cluster."""
        with translated(self._settings.bootstrap_servers):
            topics = await self._client.describe_topics()
        return {topic["topic"]: len(topic["partitions"]) for topic in topics if topic["error_code"] == 0}

    async def configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return every config of *topics*, defaults included."""
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        if not resources:
            return {}
        with translated(self._settings.bootstrap_servers):
            answers = await self._client.describe_configs(resources)
        found: dict[str, dict[str, str]] = {}
        for answer in answers:
            for error_code, _, _, name, entries in answer.resources:
                raise_for(error_code, name)
                found[name] = {entry[0]: entry[1] for entry in entries}
        return found

    async def create(self, topic: str, *, partitions: int, replicas: int, configs: Mapping[str, str]) -> bool:
        """Make *topic*, wait until clients see it, and return True; or return False where it exists.

        Raises:
            LogError: the cluster refuses.
        """
        wanted = NewTopic(topic, partitions, replicas, topic_configs=dict(configs))
        with translated(topic):
            answer = await self._client.create_topics([wanted])
        code = answer.topic_errors[0][1]
        if code == 36:  # TOPIC_ALREADY_EXISTS
            return False
        raise_for(code, topic, detail=answer.topic_errors[0][-1])
        # The controller has it; the brokers that answer clients learn of it a moment later.
        with translated(topic):
            async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
                await wait_until_visible(self._settings, topic)
        return True

    async def delete(self, topics: Sequence[str]) -> None:
        """Delete *topics* and everything in them."""
        with translated(", ".join(topics)):
            answer = await self._client.delete_topics(list(topics))
        for topic, code in answer.topic_error_codes:
            raise_for(code, topic)
