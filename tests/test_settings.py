from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for key in list(os.environ):
        if key.startswith(PREFIX) or key == "KAFKA_BOOTSTRAP_SERVERS":
            monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)


def test_defaults_use_the_local_broker_on_loopback():
    settings = load_settings()

    assert settings.uses_local_broker
    assert settings.bootstrap_servers == "127.0.0.1:9092"
    assert (settings.serve_host, settings.serve_port) == ("127.0.0.1", 8080)


def test_environment_beats_the_file_and_the_command_line_beats_both(monkeypatch: pytest.MonkeyPatch):
    Path("mindstream.toml").write_text("serve_port = 1001\nlist_size = 300\nwindow_max_clicks = 10\n")
    monkeypatch.setenv("MINDSTREAM_SERVE_PORT", "1002")
    monkeypatch.setenv("MINDSTREAM_LIST_SIZE", "400")

    settings = load_settings(list_size=500)

    assert (settings.window_max_clicks, settings.serve_port, settings.list_size) == (10, 1002, 500)


def test_cluster_of_the_user_means_no_local_broker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092")

    settings = load_settings()

    assert not settings.uses_local_broker
    assert settings.bootstrap_servers == "kafka-1:9092,kafka-2:9092"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("MINDSTREAM_WINDOW_MAX_CLICKS", "0", "a whole number, at least 1, at most 10000"),
        ("MINDSTREAM_SERVE_PORT", "70000", "a whole number, at least 1, at most 65535"),
        ("MINDSTREAM_LIST_SIZE", "many", "a whole number, at least 1, at most 1000"),
        ("MINDSTREAM_DEVICE", "tpu", "one of auto, cpu, cuda"),
        ("MINDSTREAM_HOLDOUT_SHARE", "nan", "a number, more than 0.0, less than 0.9"),
        ("MINDSTREAM_TOPIC_PREFIX", "a b", "text that matches ^[A-Za-z0-9._-]{0,100}$"),
        ("MINDSTREAM_CONSUMER_GROUP", "g" * 201, "text, at least 1 characters, at most 200 characters"),
    ],
)
def test_wrong_value_is_refused_naming_key_value_and_range(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str, allowed: str
):
    monkeypatch.setenv(key, value)

    with pytest.raises(ConfigError) as refused:
        load_settings()

    assert key in str(refused.value)
    assert repr(value) in str(refused.value)
    assert allowed in str(refused.value)


def test_unknown_key_in_the_file_is_refused():
    Path("mindstream.toml").write_text("list_siez = 5\n")

    with pytest.raises(ConfigError, match="list_siez must be a known setting"):
        load_settings()


def test_misspelled_secret_is_refused_by_name_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINDSTREAM_KAFKA_PASWORD", "correct horse")

    with pytest.raises(ConfigError, match="MINDSTREAM_KAFKA_PASWORD must be a known setting") as refused:
        load_settings()

    assert "correct horse" not in str(refused.value)


def test_secret_of_another_type_is_refused_without_its_value():
    Path("mindstream.toml").write_text("kafka_password = 20260131\n")

    with pytest.raises(ConfigError, match="kafka_password must be text") as refused:
        load_settings()

    assert "20260131" not in str(refused.value)


@pytest.mark.parametrize("content", [None, "no certificate"])
@pytest.mark.parametrize("name", ["kafka_ca_file", "kafka_cert_file"])
def test_file_that_is_no_certificate_is_named(name: str, content: str | None):
    path = Path("file.pem")
    if content is not None:
        path.write_text(content)
    settings = load_settings(kafka_bootstrap_servers="kafka-1:9093", kafka_security_protocol="SSL", **{name: path})

    with pytest.raises(ConfigError, match=rf"MINDSTREAM_{name.upper()} must be .* in PEM format.*file\.pem"):
        settings.kafka_client_options()


def test_broken_file_is_refused(monkeypatch: pytest.MonkeyPatch):
    Path("other.toml").write_text("list_size = = 5\n")
    monkeypatch.setenv("MINDSTREAM_CONFIG", "other.toml")

    with pytest.raises(ConfigError, match="valid TOML"):
        load_settings()


def test_address_other_than_loopback_demands_a_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINDSTREAM_SERVE_HOST", "0.0.0.0")

    with pytest.raises(ConfigError, match="MINDSTREAM_API_TOKEN"):
        load_settings()
    monkeypatch.setenv("MINDSTREAM_API_TOKEN", "0123456789abcdef")
    assert load_settings().serve_host == "0.0.0.0"


def test_short_token_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINDSTREAM_API_TOKEN", "short")

    with pytest.raises(ConfigError, match="16 characters"):
        load_settings()


@pytest.mark.parametrize("token", ["0123456789abcdef\n", "0123456789 abcdef", "0123456789äbcdef"])
def test_token_that_no_header_can_carry_as_it_is_is_refused_unshown(monkeypatch: pytest.MonkeyPatch, token: str):
    monkeypatch.setenv("MINDSTREAM_API_TOKEN", token)

    with pytest.raises(ConfigError, match="MINDSTREAM_API_TOKEN must be printable ASCII without spaces") as refused:
        load_settings()

    assert "0123456789" not in str(refused.value)


@pytest.mark.parametrize("key", ["KAFKA_BOOTSTRAP_SERVERS", "MINDSTREAM_BROKER_PORT", "MINDSTREAM_DEVICE"])
def test_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv(key, "")

    settings = load_settings()

    assert settings.uses_local_broker
    assert (settings.broker_port, settings.device) == (9092, "auto")


def test_security_of_a_cluster_that_is_not_named_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINDSTREAM_KAFKA_SECURITY_PROTOCOL", "SSL")

    with pytest.raises(ConfigError, match="set KAFKA_BOOTSTRAP_SERVERS to name a secured cluster"):
        load_settings()


@pytest.mark.parametrize("name", ["a-file", "a-file/data"])
def test_data_directory_that_can_not_be_one_is_refused(monkeypatch: pytest.MonkeyPatch, name: str):
    Path("a-file").write_text("")
    monkeypatch.setenv("MINDSTREAM_DATA_DIR", name)

    with pytest.raises(ConfigError, match=r"MINDSTREAM_DATA_DIR must be a directory, .*a-file is no directory"):
        load_settings()


def test_sasl_without_credentials_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINDSTREAM_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")

    with pytest.raises(ConfigError, match="MINDSTREAM_KAFKA_PASSWORD"):
        load_settings()


def test_every_client_gets_the_same_security(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka-1:9093")
    monkeypatch.setenv("MINDSTREAM_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("MINDSTREAM_KAFKA_USERNAME", "engine")
    monkeypatch.setenv("MINDSTREAM_KAFKA_PASSWORD", "correct horse")

    options = load_settings().kafka_client_options()

    assert options["security_protocol"] == "SASL_SSL"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("engine", "correct horse")
    assert options["ssl_context"].check_hostname


def test_secrets_are_not_in_the_line_that_a_process_prints(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINDSTREAM_API_TOKEN", "0123456789abcdef")

    assert "0123456789abcdef" not in str(load_settings().public())


def test_every_setting_is_documented_with_its_default():
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}

    assert set(rows) == {
        ("" if name.startswith("kafka_boot") else PREFIX) + name.upper() for name in Settings.model_fields
    }
    for name, field in Settings.model_fields.items():
        row = next(line for key, line in rows.items() if key.removeprefix(PREFIX) == name.upper())
        shown = row.split("|")[2].strip().strip("`")
        if name != "cache_dir":
            assert shown == default_text(field.default), name


def default_text(value: object) -> str:
    if value is None:
        return "unset"
    if hasattr(value, "get_secret_value"):
        return "a fixed one"
    return str(value).lower() if isinstance(value, bool) else str(value)
