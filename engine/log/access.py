"""Whether the cluster takes us: TLS both ways, user and password.

A refusal is told apart from an outage, because waiting mends only the second. aiokafka's own clients log it for every
attempt and raise something that says neither; one bare connection shows it.
"""

from __future__ import annotations

import ssl
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import IllegalSaslStateError, KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError
from aiokafka.protocol.metadata import MetadataRequest

from engine.errors import LogError
from engine.settings import Settings

CONNECT_TIMEOUT_MS = 5_000


async def check_access(settings: Settings) -> str | None:
    """Connect once, and return None if a broker takes this client, or else what may still pass by waiting.

    Raises:
        LogError: a broker refuses the user or the certificate, or its own certificate can't be trusted.
    """
    options = settings.kafka_client_options()
    addresses = options.pop("bootstrap_servers")
    problem = "nothing listens there"
    for host, port, _ in collect_hosts(addresses):
        try:
            connection = await create_conn(host, port, request_timeout_ms=CONNECT_TIMEOUT_MS, **options)
            try:
                # A listener that wants a password answers nothing but the greeting to a client that brings none.
                await connection.send(MetadataRequest([]))
            finally:
                connection.close()
        except ConnectionRefusedError:
            continue
        except (KafkaError, OSError, TimeoutError) as error:
            refusal = _refusal(settings, f"{host}:{port}", error)
            if refusal is not None:
                raise refusal from error
            problem = repr(error)
        else:
            return None
    return problem


def _refusal(settings: Settings, address: str, error: BaseException) -> LogError | None:
    """Return the error to raise where another attempt would meet the same, else None."""
    subject = f"Kafka at {address}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return LogError(
            subject,
            problem=f"shows a certificate that can't be trusted: {error.verify_message}",
            remedy="set MINDSTREAM_KAFKA_CA_FILE to the authority that signed it, "
            "and KAFKA_BOOTSTRAP_SERVERS to a name that it is for",
        )
    if isinstance(error, SaslAuthenticationFailed):
        return LogError(
            subject,
            problem=f"refuses user {settings.kafka_username!r}: {_said(error)}",
            remedy="correct MINDSTREAM_KAFKA_USERNAME and MINDSTREAM_KAFKA_PASSWORD",
        )
    if isinstance(error, UnsupportedSaslMechanismError | IllegalSaslStateError):
        return LogError(
            subject,
            problem=f"does not take {settings.kafka_sasl_mechanism} with {settings.kafka_security_protocol}",
            remedy="correct MINDSTREAM_KAFKA_SASL_MECHANISM or MINDSTREAM_KAFKA_SECURITY_PROTOCOL",
        )
    # Under TLS 1.3 a broker judges our certificate after the handshake, and closes with an alert.
    if isinstance(error.__cause__, ssl.SSLError) and "ALERT" in (error.__cause__.reason or ""):
        return LogError(
            subject,
            problem=f"refuses this client's certificate: {error.__cause__.reason}",
            remedy="correct MINDSTREAM_KAFKA_CERT_FILE and MINDSTREAM_KAFKA_KEY_FILE",
        )
    return None


def _said(error: KafkaError) -> Any:
    """Return the broker's own words."""
    return error.args[0] if error.args else type(error).__name__
