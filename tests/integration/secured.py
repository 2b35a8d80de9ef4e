"""A real Kafka with the listeners of a production cluster: passwords over TLS, and certificates on both sides."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka.admin import KafkaAdminClient, ScramMechanism, UserScramCredentialUpsertion

from engine.settings import Settings
from engine.streams.local_broker import LocalBroker
from tests.conftest import free_port

HOST = "127.0.0.1"
USERNAME, PASSWORD = "mindstream", "correct-horse-battery-staple"
EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test's own."""

    folder: Path
    own: Certificate

    @classmethod
    def make(cls, folder: Path, name: str = "authority") -> Authority:
        own = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
        usage = ("-addext", "keyUsage=critical,keyCertSign")
        openssl("req", "-x509", *EC_KEY, "-subj", f"/CN={name}", *usage, "-keyout", own.key, "-out", own.cert)
        return cls(folder, own)

    def issue(self, name: str, *, address: str) -> Certificate:
        """Make a certificate for the host with this IP address."""
        issued = Certificate(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:{address}\n")
        openssl("req", "-new", *EC_KEY[:-2], "-subj", f"/CN={name}", "-keyout", issued.key, "-out", request)
        signed_by = ("-CA", self.own.cert, "-CAkey", self.own.key, "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", request, *signed_by, "-extfile", extensions, "-out", issued.cert)
        return issued


def openssl(*arguments: object) -> None:
    program = shutil.which("openssl")
    assert program is not None
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True)


class SecuredBroker:
    """One node with more listeners: SASL_SSL for SCRAM-SHA-512 and PLAIN, SSL with certificates, SASL_PLAINTEXT."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.make(folder)
        self.client = self.authority.issue("client", address=HOST)
        self._ports = {"PLAINTEXT": free_port(2), "PASSWORD": free_port(), "MUTUAL": free_port(), "CLEAR": free_port()}
        self._settings = Settings(data_dir=folder / "broker", broker_port=self._ports["PLAINTEXT"], broker_heap_mb=384)
        self._broker = LocalBroker(self._settings, properties=self._properties(folder))

    def start(self) -> None:
        self._broker.start()
        admin = KafkaAdminClient(bootstrap_servers=self._broker.bootstrap_servers)
        try:
            admin.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(USERNAME, ScramMechanism.SCRAM_SHA_512, PASSWORD)]
            )
        finally:
            admin.close()

    def stop(self) -> None:
        self._broker.stop()

    def with_password(self, **changes: object) -> dict[str, Any]:
        """Return the settings of a client that comes with user name and password."""
        return {
            "kafka_bootstrap_servers": f"{HOST}:{self._ports['PASSWORD']}",
            "kafka_security_protocol": "SASL_SSL",
            "kafka_username": USERNAME,
            "kafka_password": PASSWORD,
            "kafka_ca_file": self.authority.own.cert,
            **changes,
        }

    def with_clear_password(self, **changes: object) -> dict[str, Any]:
        """Return the settings of a client that sends its password without TLS."""
        return {
            "kafka_bootstrap_servers": f"{HOST}:{self._ports['CLEAR']}",
            "kafka_security_protocol": "SASL_PLAINTEXT",
            "kafka_sasl_mechanism": "PLAIN",
            "kafka_username": USERNAME,
            "kafka_password": PASSWORD,
            **changes,
        }

    def with_certificate(self, **changes: object) -> dict[str, Any]:
        """Return the settings of a client that comes with a certificate."""
        return {
            "kafka_bootstrap_servers": f"{HOST}:{self._ports['MUTUAL']}",
            "kafka_security_protocol": "SSL",
            "kafka_ca_file": self.authority.own.cert,
            "kafka_cert_file": self.client.cert,
            "kafka_key_file": self.client.key,
            **changes,
        }

    def _properties(self, folder: Path) -> dict[str, str]:
        store = folder / "server.store.pem"
        server = self.authority.issue("server", address=HOST)
        store.write_text(server.key.read_text() + server.cert.read_text())
        listeners = ",".join(f"{name}://{HOST}:{port}" for name, port in self._ports.items())
        plain = f'required user_{USERNAME}="{PASSWORD}";'
        modules = "org.apache.kafka.common.security"
        return {
            "listeners": f"{listeners},CONTROLLER://{HOST}:{self._ports['PLAINTEXT'] + 1}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": (
                "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PASSWORD:SASL_SSL,MUTUAL:SSL,CLEAR:SASL_PLAINTEXT"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(store),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.own.cert),
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.password.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "listener.name.password.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
            "listener.name.password.plain.sasl.jaas.config": f"{modules}.plain.PlainLoginModule {plain}",
            "listener.name.clear.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.clear.plain.sasl.jaas.config": f"{modules}.plain.PlainLoginModule {plain}",
        }
