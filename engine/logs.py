"""Logs: one event name and key-values a line; user ids only as a keyed hash."""

from __future__ import annotations

import hashlib
import hmac
import logging
import sys

import structlog

from engine.settings import Settings


def configure_logs(settings: Settings, *, role: str) -> None:
    """Send structlog's and the libraries' lines to standard error, each with *role*, at `log_level` and above."""
    level = getattr(logging, settings.log_level.upper())
    logging.basicConfig(
        level=max(level, logging.WARNING), format="%(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    if level > logging.DEBUG:
        # kafka-python writes a dozen lines for a broker that is away; the LogError that follows says it in one.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)


def user_tag(settings: Settings, user_id: str) -> str:
    """Return the name under which a user appears in logs: eight hex digits of a keyed hash."""
    key = settings.log_salt.get_secret_value().encode()
    return "#" + hmac.new(key, user_id.encode(), hashlib.sha256).hexdigest()[:8]
