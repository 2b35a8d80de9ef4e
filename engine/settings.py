"""Settings: how a process runs, read once at its start from a TOML file and `MINDSTREAM_*` variables.

Order of precedence: command line, environment, TOML file (`mindstream.toml`, or the file that `MINDSTREAM_CONFIG`
names), default. The object is frozen and passed down; no other module reads the environment. What a model *is* lives
in its `config`, which travels with the weights (`engine/model/config.py`). `docs/settings.md` lists every field, and a
test compares the two.
"""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from engine.errors import ConfigError

PREFIX = "MINDSTREAM_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
OUTSIDE_NAMES = {"kafka_bootstrap_servers": "KAFKA_BOOTSTRAP_SERVERS"}
"""Settings that go by a name of their own in the environment, because the rest of the world calls them so."""

NOT_SETTINGS = (PREFIX + "CONFIG", PREFIX + "TEST_")
"""Variables with our prefix that name no setting: the file of settings, and what the tests are told."""


class Settings(BaseSettings):
    """Every setting of every command; the defaults run the whole system on one machine."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", populate_by_name=True)

    # --- where things are
    data_dir: Path = Path("data")
    """Everything on disk: broker, stores, model versions, logs."""
    cache_dir: Path = Path.home() / ".cache" / "mindstream"
    """Downloads that outlive the data: the broker's jars and fetched data sets."""

    # --- Kafka
    kafka_bootstrap_servers: str | None = Field(
        default=None, validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers")
    )
    """An existing cluster; when set, no broker is started. Unset: the local broker on `broker_port`."""
    broker_port: int = Field(default=9092, ge=1, le=65_000)
    """First port of the local broker; each node takes two, its own and its controller's."""
    broker_heap_mb: int = Field(default=512, ge=128, le=65_536)
    """Heap of one local broker node, in megabytes."""
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How every client of this project talks to Kafka."""
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """Used by the SASL protocols."""
    kafka_username: str | None = None
    """SASL user name."""
    kafka_password: SecretStr | None = None
    """SASL password; never printed."""
    kafka_ca_file: Path | None = None
    """Certificate authority that signed the brokers' certificates; unset: the system's."""
    kafka_cert_file: Path | None = None
    """This client's certificate, for mutual TLS."""
    kafka_key_file: Path | None = None
    """The key of `kafka_cert_file`."""
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,100}$")
    """Put before every topic's name, so that several systems share a cluster."""
    clicks_partitions: int = Field(default=4, ge=1, le=1_000)
    """Partitions of `clicks` and `recall-lists` when they are created; fixed for the life of the topic."""
    replication_factor: int = Field(default=1, ge=1, le=10)
    """Replicas of each topic when it is created; 3 in production."""
    consumer_group: str = Field(default="mindstream-engine", min_length=1, max_length=200)
    """Consumer group that shares the partitions of `clicks` among engines."""
    session_timeout_s: float = Field(default=10.0, ge=1.0, le=300.0)
    """How long a silent engine keeps its partitions."""

    leave_on_stop: bool = False
    """Leave the consumer group when an engine is stopped, so that others take its partitions over at once; false: it
    keeps them for `session_timeout_s`, and takes them up again where it is started within that."""

    # --- windows and ingest
    window_max_clicks: int = Field(default=50, ge=1, le=10_000)
    """Clicks a window keeps: the newest by event time, and as many negative ones beside them."""
    future_tolerance_ms: int = Field(default=60_000, ge=0, le=86_400_000)
    """How far a click's time may lie after the time its record was logged, in milliseconds."""
    max_message_bytes: int = Field(default=65_536, ge=256, le=1_000_000)
    """A larger click goes to the dead letters unread; a larger item is counted and skipped."""
    checkpoint_url: str | None = None
    """Where partition stores are copied to, a directory or an fsspec address; unset: the log rebuilds them."""
    checkpoint_every_s: float = Field(default=60.0, ge=1.0, le=86_400.0)
    """Pause between two checkpoints of a partition that had clicks."""
    keep_checkpoints: int = Field(default=3, ge=1, le=1_000)
    """Checkpoints kept of each partition."""
    accept_log_gap: bool = False
    """Go on although the log no longer holds clicks that a store needs next; its windows lack them for ever."""

    # --- refresh and lists
    refresh_batch_size: int = Field(default=256, ge=1, le=100_000)
    """Users routed together at the most."""
    refresh_wait_ms: int = Field(default=5, ge=0, le=10_000)
    """How long the refresh loop waits for company after the first dirty user, in milliseconds."""
    list_size: int = Field(default=200, ge=1, le=1_000)
    """Items of a recall list."""
    interest_floor: float = Field(default=0.05, ge=0.0, le=0.5)
    """Share of a list that the best items of an interest with an even claim fill at least; of another one as its claim
    is, and one item at least."""
    interest_cap: float = Field(default=0.9, ge=0.1, le=1.0)
    """Share of a list that one interest gets at most, and its part of the rest, while others can fill what is left."""
    category_cap: float = Field(default=1.0, ge=0.01, le=1.0)
    """Share of a list that one category gets at most, while others can fill the rest; 1: no bound."""
    exclude_seen: bool = True
    """Leave items of the user's window out of the list."""
    seen_days: float = Field(default=0.0, ge=0.0, le=3_650.0)
    """Leave also out what the user clicked so many days before the newest click; 0: the window alone."""
    seen_max_clicks: int = Field(default=500, ge=1, le=10_000)
    """So many clicks of a user are kept for that at most, those of the window among them."""
    negative_push: float = Field(default=2.0, ge=0.0, le=100.0)
    """How much lower an item scores that is nearer to one the user disliked or hid than to any clicked one: this share
    of its score for a difference of 1 between the cosines; 0: only the item itself stays out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where routing runs; auto takes CUDA where there is one."""
    index_backend: Literal["auto", "hnsw", "exact"] = "auto"
    """What searches the items: an hnswlib graph, exact search, or what a short measurement at loading chooses."""
    index_ef: int = Field(default=200, ge=10, le=10_000)
    """Candidates hnswlib keeps while it searches; higher finds more and costs more."""
    index_ef_max: int = Field(default=1_000, ge=10, le=10_000)
    """Up to so many, an engine raises `index_ef` by itself while its lists hold less than `recall_target`."""
    recall_target: float = Field(default=0.98, ge=0.5, le=1.0)
    """Share of an exactly made list that lists are to hold; sampled lists are compared all the time."""
    pool_mb: int = Field(default=256, ge=0, le=1_000_000)
    """Memory for what users' last searches found, in megabytes; 0 keeps nothing, and every interest searches."""
    pool_bound: float = Field(default=0.25, ge=0.0, le=1.0)
    """An interest that moved less than this share of its length since a search scores again what that search found; one
    that moved farther searches unless what was found reaches far enough. 0: every interest searches."""
    index_rebuild_at: int = Field(default=10_000, ge=100, le=10_000_000)
    """New and changed items that are searched beside the index; with more of them it is built again meanwhile."""
    torch_threads: int = Field(default=1, ge=1, le=256)
    """Threads of torch and of the index in an engine or query service."""

    # --- models
    registry_url: str | None = None
    """Where model versions are kept, a directory or an fsspec address; unset: `<data_dir>/models`."""
    keep_versions: int = Field(default=20, ge=2, le=100_000)
    """Trained versions the registry keeps; a publishing trainer deletes older ones, never the parent of the new one."""
    train_sessions: bool = False
    """Whether users are sessions, which end after a few clicks: training then looks at the next click alone."""
    train_batch_size: int = Field(default=512, ge=8, le=65_536)
    """Samples of one training step."""
    train_epochs: float = Field(default=3.0, gt=0.0, le=1_000.0)
    """Passes over the samples."""
    train_max_seconds: float = Field(default=75.0, ge=1.0, le=86_400.0)
    """The steps of a training run take no longer than this; it learns from fewer passes then."""
    train_threads: int = Field(default=2, ge=1, le=256)
    """Threads of torch and of the index build in the trainer."""
    train_min_clicks: int = Field(default=1_000, ge=10, le=10**9)
    """Fewer clicks in the log train nothing."""
    train_min_judged_users: int = Field(default=30, ge=1, le=10**9)
    """A version that fewer users could be judged on is not published: held-out clicks of new items make them."""
    train_margin: float = Field(default=0.005, ge=0.0, le=1.0)
    """A version so much, and two standard errors, below the one in service in Recall@50 is not published."""
    holdout_share: float = Field(default=0.1, gt=0.0, lt=0.9)
    """Share of the clicks, the latest ones, that a version is judged on."""
    seed: int = Field(default=7, ge=0, le=2**31 - 1)
    """Seed of training and of the simulated shop."""

    # --- listeners
    serve_host: str = "127.0.0.1"
    """Address of the query service; any but loopback demands `api_token`."""
    serve_port: int = Field(default=8080, ge=1, le=65_535)
    """Port of the query service and its page."""
    api_token: SecretStr | None = None
    """Bearer token that every request must carry when it is set; 16 printable ASCII characters or more, no spaces."""
    metrics_host: str = "127.0.0.1"
    """Address of the metrics listeners of engine and trainer."""
    engine_metrics_port: int = Field(default=9101, ge=0, le=65_535)
    """Port of the engine's metrics; 0 turns them off."""
    trainer_metrics_port: int = Field(default=9102, ge=0, le=65_535)
    """Port of the trainer's metrics; 0 turns them off."""
    max_query_items: int = Field(default=200, ge=1, le=1_000)
    """Largest `limit` of a query; at most `list_size`."""
    max_recalls_at_once: int = Field(default=32, ge=1, le=10_000)
    """Lists and neighbors that a query service works out itself at once, waiting ones included; more are refused."""
    max_body_bytes: int = Field(default=1_000_000, ge=1_000, le=100_000_000)
    """Larger HTTP bodies are refused."""
    ready_max_lag: int = Field(default=10_000, ge=0, le=10**9)
    """A query service further behind than this many lists is not ready."""

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    log_salt: SecretStr = SecretStr("mindstream")
    """Key of the hash under which user ids appear in logs; set your own in production."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what `load_settings` read and nothing else, so that an empty variable is an unset one."""
        return (init_settings,)

    @property
    def bootstrap_servers(self) -> str:
        """The brokers to ask first, as `host:port,host:port`."""
        return self.kafka_bootstrap_servers or f"127.0.0.1:{self.broker_port}"

    @property
    def uses_local_broker(self) -> bool:
        """True when this project starts its own broker."""
        return self.kafka_bootstrap_servers is None

    @property
    def registry(self) -> str:
        """Address of the model registry."""
        return self.registry_url or str(self.data_dir / "models")

    @property
    def candidates(self) -> int:
        """How many items an interest finds, so that a list is full without those the user has seen."""
        seen = max(self.seen_max_clicks, self.window_max_clicks) if self.seen_days else self.window_max_clicks
        return self.list_size + min(seen, self.list_size)

    def topic(self, name: str) -> str:
        """Return the full name of the topic called *name* in the contract."""
        return self.topic_prefix + name

    def kafka_client_options(self) -> dict[str, Any]:
        """Return what aiokafka and kafka-python clients alike are constructed with: address, TLS and SASL."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.kafka_security_protocol,
        }
        if self.kafka_security_protocol.endswith("SSL"):
            options["ssl_context"] = self.kafka_ssl_context()
        if self.kafka_security_protocol.startswith("SASL") and self.kafka_password is not None:
            options["sasl_mechanism"] = self.kafka_sasl_mechanism
            options["sasl_plain_username"] = self.kafka_username
            options["sasl_plain_password"] = self.kafka_password.get_secret_value()
        return options

    def kafka_ssl_context(self) -> ssl.SSLContext:
        """Return a context that checks the brokers' certificates and host names.

        Raises:
            ConfigError: a file is missing, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.kafka_ca_file)
        except OSError as error:
            raise _unusable("kafka_ca_file", self.kafka_ca_file, error, "certificates in PEM format") from error
        if self.kafka_cert_file is not None:
            try:
                # Without a password OpenSSL would ask the terminal for the one of an encrypted key.
                context.load_cert_chain(self.kafka_cert_file, self.kafka_key_file, password="")
            except OSError as error:
                expected = "a certificate in PEM format, and kafka_key_file its key without a password"
                raise _unusable("kafka_cert_file", self.kafka_cert_file, error, expected) from error
        return context

    def public(self) -> dict[str, object]:
        """Return every setting in force with secrets masked, for the line that a process prints at its start."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in self.model_dump().items()}


def load_settings(**overrides: object) -> Settings:
    """Return the settings in force; *overrides* come from the command line, and None means not given.

    Raises:
        ConfigError: a value is out of range, a key is unknown, or two settings contradict each other.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    environment = _read_environment(os.environ)
    try:
        settings = Settings(**{**_read_file(), **environment, **given})  # type: ignore[arg-type]
    except ValidationError as error:
        raise _named(error, environment) from error
    _check_together(settings)
    return settings


def _unusable(name: str, path: Path | None, error: OSError, expected: str) -> ConfigError:
    return ConfigError(PREFIX + name.upper(), got=f"{path} ({error.strerror or error})", expected=expected)


def _read_environment(environ: Mapping[str, str]) -> dict[str, object]:
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    known |= {outside: name for name, outside in OUTSIDE_NAMES.items()}
    for key in environ:
        if key.startswith(PREFIX) and key not in known and not key.startswith(NOT_SETTINGS):
            raise _unknown(key)
    return {name: environ[key] for key, name in known.items() if environ.get(key, "") != ""}


def _read_file() -> dict[str, object]:
    named = os.environ.get(PREFIX + "CONFIG")
    path = Path(named or "mindstream.toml")
    if not path.is_file():
        if named:
            raise ConfigError(PREFIX + "CONFIG", got=named, expected="the path of an existing TOML file")
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), got=str(error), expected="valid TOML") from error
    for key in values:
        if key not in Settings.model_fields:
            raise _unknown(f"{path}: {key}")
    return values


def _unknown(key: str) -> ConfigError:
    """Return the error for a name that is none; without its value, which may be a misspelled secret's."""
    return ConfigError(key, got="another name", expected="a known setting; docs/settings.md lists them")


def _named(error: ValidationError, environment: Mapping[str, object]) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    name = next((field for field, outside in OUTSIDE_NAMES.items() if outside == name), name)
    key = OUTSIDE_NAMES.get(name, PREFIX + name.upper()) if name in environment else name
    is_secret = "SecretStr" in str(Settings.model_fields[name].annotation)
    return ConfigError(key, got="something else" if is_secret else first["input"], expected=allowed(name))


def allowed(name: str) -> str:
    """Return in words what the setting *name* accepts, read off its type and range."""
    field = Settings.model_fields[name]
    choices = getattr(field.annotation, "__args__", None)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "one of " + ", ".join(choices)
    bounds = {type(rule).__name__: rule for rule in field.metadata}
    kind = getattr(field.annotation, "__name__", str(field.annotation))
    words = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(kind, "text")
    for rule, phrase, attribute in (
        ("Ge", "at least", "ge"),
        ("Gt", "more than", "gt"),
        ("Le", "at most", "le"),
        ("Lt", "less than", "lt"),
    ):
        if rule in bounds:
            words += f", {phrase} {getattr(bounds[rule], attribute)}"
    for rule, phrase in (("MinLen", "at least"), ("MaxLen", "at most")):
        if rule in bounds:
            words += (
                f", {phrase} {getattr(bounds[rule], 'min_length' if rule == 'MinLen' else 'max_length')} characters"
            )
    pattern = next((rule.pattern for rule in field.metadata if getattr(rule, "pattern", None)), None)
    return words if pattern is None else f"{words} that matches {pattern}"


def _check_token(token: str) -> None:
    """Refuse what a client can't send in a header as it is; a secret read from a file often ends with a newline."""
    if len(token) < 16:
        raise ConfigError(PREFIX + "API_TOKEN", got="a shorter one", expected="at least 16 characters long")
    if not all("!" <= character <= "~" for character in token):
        got = "one with a space, a line break or another character that is not printable ASCII"
        raise ConfigError(PREFIX + "API_TOKEN", got=got, expected="printable ASCII without spaces")


def _check_together(settings: Settings) -> None:
    token = settings.api_token
    if token is not None:
        _check_token(token.get_secret_value())
    if settings.serve_host not in LOOPBACK and token is None:
        raise ConfigError(
            PREFIX + "API_TOKEN",
            got=None,
            expected=f"set when the query service listens on {settings.serve_host}, which is not loopback",
        )
    if settings.kafka_security_protocol.startswith("SASL") and not (
        settings.kafka_username and settings.kafka_password
    ):
        raise ConfigError(
            PREFIX + "KAFKA_PASSWORD",
            got=None,
            expected=f"set together with {PREFIX}KAFKA_USERNAME for {settings.kafka_security_protocol}",
        )
    if settings.kafka_security_protocol != "PLAINTEXT" and settings.uses_local_broker:
        raise ConfigError(
            PREFIX + "KAFKA_SECURITY_PROTOCOL",
            got=settings.kafka_security_protocol,
            expected="PLAINTEXT with the local broker; set KAFKA_BOOTSTRAP_SERVERS to name a secured cluster",
        )
    place = settings.data_dir.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        got = f"{settings.data_dir} ({place} is no directory)"
        raise ConfigError(PREFIX + "DATA_DIR", got=got, expected="a directory, or one that can be made")
    if settings.max_query_items > settings.list_size:
        raise ConfigError(
            PREFIX + "MAX_QUERY_ITEMS",
            got=settings.max_query_items,
            expected=f"at most MINDSTREAM_LIST_SIZE, {settings.list_size}",
        )
