"""The `mindstream` command: one sub-command a role, each a thin call into the package that does the work.

Imports stand inside the commands, so that `--help` answers at once and a query service loads no Faust.
Exit codes: 0 done, 1 a named failure, 2 a wrong setting or argument, 130 broken off by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from engine import options as columns
from engine.errors import ConfigError, EngineError
from engine.logs import configure_logs
from engine.settings import Settings, load_settings
from trainer.offline.command import evaluate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Streaming multi-interest recall: a click becomes a fresh list in a fraction of a second.\n\n"
    "Settings come from MINDSTREAM_* variables and mindstream.toml; docs/settings.md lists them.",
)
dead_letters = typer.Typer(
    no_args_is_help=True, help="Messages that could not be taken: look at them, send them again."
)
data = typer.Typer(no_args_is_help=True, help="Public data sets to try the engine on.")
topics = typer.Typer(no_args_is_help=True, help="The Kafka topics of the contract.")
windows = typer.Typer(no_args_is_help=True, help="The behavior windows on this machine's disk.")
checkpoints = typer.Typer(no_args_is_help=True, help="Copies of partition stores, for whoever takes them over.")
models = typer.Typer(no_args_is_help=True, help="Published model versions.")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(data, name="data")
app.add_typer(topics, name="topics")
app.add_typer(windows, name="windows")
app.add_typer(checkpoints, name="checkpoints")
app.add_typer(models, name="models")

DataPath = Annotated[
    Path | None,
    typer.Option("--data", help="Real events: a folder or file (docs/data.md). Without it, the simulated shop."),
]


def main() -> None:
    """Run the command line and turn our errors into one sentence and an exit code."""
    try:
        app()
    except ConfigError as error:
        _fail(error, code=2)
    except EngineError as error:
        _fail(error, code=1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: EngineError, *, code: int) -> None:
    typer.echo(f"mindstream: {error}", err=True)
    sys.exit(code)


def _settings(role: str, **overrides: object) -> Settings:
    settings = load_settings(**overrides)
    configure_logs(settings, role=role)
    return settings


def _on_cluster(role: str, **overrides: object) -> Settings:
    """Return the settings of a command that talks to Kafka, unless a secured cluster refuses them."""
    settings = _settings(role, **overrides)
    if settings.kafka_security_protocol != "PLAINTEXT":
        from engine.log import check_access

        asyncio.run(check_access(settings))
    return settings


@app.command()
def up(
    data_path: DataPath = None,
    exit_when_replayed: Annotated[
        bool, typer.Option("--exit-when-replayed", help="Stop after the replay and 60 s of live traffic.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write what was measured to this file, as JSON.")] = None,
    clicks: Annotated[
        int | None, typer.Option(min=100, help="Use only the first so many clicks of the source.")
    ] = None,
    live_rate: Annotated[
        float, typer.Option(min=0.1, max=10_000, help="Live clicks per second after the replay.")
    ] = 20.0,
    train_every: Annotated[str, typer.Option(help="Retrain this often: 90s, 15m, 2h.")] = "15m",
) -> None:
    """Run the whole system on this machine until Ctrl-C: broker, engine, trainer, query service, page."""
    from engine.up import UpOptions, run_up

    options = UpOptions(
        data_path=data_path,
        exit_when_replayed=exit_when_replayed,
        report_path=report,
        click_limit=clicks,
        live_rate=live_rate,
        train_every=train_every,
    )
    duration_s(train_every)
    raise typer.Exit(run_up(_settings("up"), options))


@app.command()
def broker(
    nodes: Annotated[int, typer.Option(min=1, max=5, help="Kafka nodes; 3 for fault tests.")] = 1,
    port: Annotated[int | None, typer.Option(help="First port; each node takes two.")] = None,
    fetch_only: Annotated[bool, typer.Option("--fetch-only", help="Only download the broker's jars.")] = False,
) -> None:
    """Run a real Apache Kafka broker on this machine, for machines that have none."""
    from engine.streams.broker_jars import fetch_jars, has_jars
    from engine.streams.local_broker import run_broker

    settings = _settings("broker", broker_port=port)
    if not has_jars(settings):
        with typer.progressbar(length=1_000, label="Fetching Apache Kafka") as bar:
            fetch_jars(settings, on_progress=lambda fetched, total: bar.update(1_000 * fetched // total - bar.pos))
    if not fetch_only:
        run_broker(settings, nodes)


@app.command()
def engine() -> None:
    """Run one engine: clicks in, fresh recall lists out. More engines share the partitions."""
    from engine.streams.app import run_engine

    run_engine(_on_cluster("engine"))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; any but loopback demands a token.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Run the query service and the page."""
    from engine.serving.server import run_server

    run_server(_on_cluster("serve", serve_host=host, serve_port=port))


@app.command()
def train(
    every: Annotated[
        str | None, typer.Option(help="Train again and again, this long between starts: 90s, 15m, 2h.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only clicks logged since this time (ISO 8601).")] = None,
    last: Annotated[str | None, typer.Option(help="Only clicks logged within this long: 12h, 30d.")] = None,
    version_zero: Annotated[
        bool,
        typer.Option("--version-zero", help="Only publish version 0000, the popular lists, if there is no version."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Publish even when no better than the popular list.")] = False,
) -> None:
    """Train on the click log, evaluate on its latest clicks, publish a model version."""
    from trainer.run import run_training

    if since and last:
        raise ConfigError("--since", got=since, expected="given without --last")
    run_training(
        _on_cluster("trainer"),
        every_s=duration_s(every) if every else None,
        since_ms=_since_ms(since),
        last_s=duration_s(last) if last else None,
        version_zero_only=version_zero,
        force=force,
    )


@app.command()
def replay(
    data_path: DataPath = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Clicks per second; as fast as possible without it.")
    ] = None,
    speed: Annotated[float | None, typer.Option(min=0.001, help="Compress event time by this factor instead.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Send only the first so many clicks.")] = None,
    restamp: Annotated[bool, typer.Option("--restamp", help="Send each click with the time of sending.")] = False,
    skip_items: Annotated[bool, typer.Option("--skip-items", help="Send no catalog.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew instead of where the last replay stopped.")
    ] = False,
    user_column: columns.UserColumn = None,
    item_column: columns.ItemColumn = None,
    time_column: columns.TimeColumn = None,
    time_unit: Annotated[columns.TimeUnit, typer.Option(help="Unit of the time column.")] = columns.TimeUnit.AUTO,
    event_type_column: columns.EventTypeColumn = None,
    weight_column: columns.WeightColumn = None,
    profile_column: columns.ProfileColumns = None,
    title_column: Annotated[str | None, typer.Option(help="Column with the item's title.")] = None,
    category_column: columns.CategoryColumn = None,
) -> None:
    """Send a data set, or the simulated shop, into `clicks` and `items`."""
    from engine.sending import run_replay

    run_replay(
        _on_cluster("replay"),
        data_path,
        rate=rate,
        speed=speed,
        last=limit,
        restamp=restamp,
        send_items=not skip_items,
        fresh=fresh,
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        time_unit=time_unit.value,
        event_type_column=event_type_column,
        weight_column=weight_column,
        profile_columns=profile_column or (),
        title_column=title_column,
        category_column=category_column,
    )


@app.command()
def doctor() -> None:
    """Check the set-up and say what is wrong."""
    from engine.doctor import check_setup

    checks = check_setup(_settings("doctor"))
    for check in checks:
        typer.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        if not check.ok:
            typer.echo(f"      {check.remedy}")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def simulate(
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Clicks per second; as fast as possible without it.")
    ] = None,
    speed: Annotated[float | None, typer.Option(min=0.001, help="Compress event time by this factor instead.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the shop; the same seed is the same shop.")] = None,
    items: Annotated[int, typer.Option(min=200, help="Size of the catalog.")] = 4_000,
    users: Annotated[int, typer.Option(min=10, help="How many users, bots included.")] = 3_000,
    clicks: Annotated[int, typer.Option(min=100, help="How many clicks.")] = 120_000,
    restamp: Annotated[bool, typer.Option("--restamp", help="Send each click with the time of sending.")] = False,
    to_file: Annotated[Path | None, typer.Option(help="Write a CSV, TSV or Parquet file and send nothing.")] = None,
) -> None:
    """Send a simulated shop: made-up users with known interests, for trying things out."""
    from engine.sending import run_simulate

    settings = _settings("simulate") if to_file is not None else _on_cluster("simulate")
    if to_file is not None:
        run_simulate(settings, seed=seed, items=items, users=users, clicks=clicks, to_file=to_file)
        return
    run_simulate(settings, seed=seed, items=items, users=users, clicks=clicks, rate=rate, speed=speed, restamp=restamp)


app.command()(evaluate)


@app.command()
def audit(
    windows_file: Annotated[
        Path | None,
        typer.Option("--windows", help="A file written by `mindstream windows dump`; without it, dump now."),
    ] = None,
    base_file: Annotated[
        Path | None,
        typer.Option("--base", help="An earlier dump, taken as given: begin behind it instead of at the log's start."),
    ] = None,
    show_ids: Annotated[bool, typer.Option("--show-ids", help="Name users in clear, not by their hash.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Recompute every window from the log, compare lists and dead letters too, and name each difference."""
    from engine.audit import audit as run_audit

    report = run_audit(_on_cluster("audit"), windows=windows_file, base=base_file, show_ids=show_ids)
    _show(json.dumps(report.as_dict(), indent=2) if as_json else "\n".join(report.lines()))
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def erase(user_id: Annotated[str, typer.Argument(help="Whom to forget.")]) -> None:
    """Forget a user: all clicks logged so far are ignored from now on, by everything that reads the log."""
    from engine.erasures import erase_user_now
    from engine.serving.queries import AN_ID, is_id

    settings = _on_cluster("erase")
    if not is_id(user_id):
        raise ConfigError("USER_ID", got=user_id, expected=AN_ID)
    erasure = erase_user_now(user_id, settings)
    _show(f"clicks of partition {erasure.partition} up to offset {erasure.offset} are ignored for this user")


@dead_letters.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 100,
) -> None:
    """Print dead letters as JSON lines: the reason, where the message was, and what it held (base64)."""
    from engine.streams.dead_letters import list_dead_letters

    for letter in list_dead_letters(_on_cluster("dead-letters"), limit=limit):
        _show(json.dumps(letter, ensure_ascii=False))


@dead_letters.command("redrive")
def redrive_letters(
    reason: Annotated[str | None, typer.Option(help="Only letters with this reason.")] = None,
) -> None:
    """Send dead letters to `clicks` again, after what was wrong was mended."""
    from engine.streams.dead_letters import redrive

    _show(json.dumps(dataclasses.asdict(redrive(_on_cluster("dead-letters"), reason=reason))))


@data.command("fetch")
def fetch(name: Annotated[str, typer.Argument(help="online-retail")]) -> None:
    """Download a public data set to the cache directory and print where it lies."""
    from engine.sources.fetch import run_fetch

    run_fetch(_settings("data"), name)


@topics.command("create")
def create() -> None:
    """Create the topics that are missing; refuse where one differs from the contract."""
    from engine.streams.topics import create_topics

    made = asyncio.run(create_topics(_on_cluster("topics")))
    _show(f"created {', '.join(made)}" if made else "all topics exist")


@topics.command("list")
def list_topics() -> None:
    """Show each topic, what it is for, and what differs."""
    from engine.streams.topics import describe_topics

    rows = asyncio.run(describe_topics(_on_cluster("topics")))
    for row in rows:
        state = "ok" if row.is_right else "; ".join(row.differences) or "missing"
        _show(f"{row.name}\t{row.partitions or 0} partitions\t{state}\t{row.purpose}")
    raise typer.Exit(0 if all(row.is_right for row in rows) else 1)


@windows.command("dump")
def dump(
    jsonl: Annotated[bool, typer.Option("--jsonl", help="One JSON object a line; the only format.")] = True,
    of_checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints", help="Print those of each partition's oldest checkpoint that the log goes on from."
        ),
    ] = False,
) -> None:
    """Print every window that this data directory holds of the topic `clicks`, also while an engine runs."""
    from engine.store.dump import dump_checkpoints, dump_windows
    from engine.streams.checkpointing import find_continued, named_checkpoints

    if of_checkpoints:
        settings = _on_cluster("windows")
        checkpoints = named_checkpoints(settings)
        found = dump_checkpoints(settings, checkpoints, asyncio.run(find_continued(settings, checkpoints)))
    else:
        found = dump_windows(_settings("windows"))
    for window in found:
        _show(json.dumps(window, ensure_ascii=False))


@checkpoints.command("list")
def list_checkpoints(
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare it with its manifest.")] = False,
) -> None:
    """Show the checkpoints at MINDSTREAM_CHECKPOINT_URL, greatest offsets first; exit code 1 if one is damaged."""
    from engine.streams.checkpointing import list_checkpoints as rows_of

    rows = asyncio.run(rows_of(_on_cluster("checkpoints"), verify=verify))
    for partition, checkpoint, state in rows:
        made, size = _utc(checkpoint.created_at_ms), f"{checkpoint.size:,} bytes"
        _show(f"{partition}\toffset {checkpoint.applied_offset}\t{made}\t{size}\t{checkpoint.worker}\t{state}")
    raise typer.Exit(0 if all(state == "ok" for _, _, state in rows) else 1)


@models.command("list")
def list_versions() -> None:
    """Show the published versions, the current one marked with a star."""
    from trainer.publish import list_models

    for row in list_models(_on_cluster("models")):
        mark = "*" if row.is_current else " "
        if row.created_at_ms is None:
            _show(f"{mark} {row.version}\t{row.problem or 'its manifest names no time'}")
            continue
        judged = "-" if row.recall_at_50 is None else f"{row.recall_at_50:.4f} (popular {row.popular_recall_at_50:.4f})"
        _show(f"{mark} {row.version}\t{_utc(row.created_at_ms)}\t{row.items} items\tRecall@50 {judged}")


@models.command("promote")
def promote_version(version: Annotated[str, typer.Argument(help="For example 0002.")]) -> None:
    """Make a published version the current one; an older one is a rollback."""
    from trainer.publish import promote

    announced = promote(_on_cluster("models"), version, now_ms=int(datetime.now(UTC).timestamp() * 1000))
    _show(f"version {announced.model_version} is current, activation {announced.activation}")


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _since_ms(since: str | None) -> int | None:
    if since is None:
        return None
    try:
        moment = datetime.fromisoformat(since)
    except ValueError as error:
        raise ConfigError("--since", got=since, expected="a time such as 2026-01-31T12:00") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def duration_s(text: str) -> float:
    """Return the seconds that *text* such as `90s`, `15m`, `2h` or `30d` stands for.

    Raises:
        ConfigError: it is not a number with one of these units.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError("duration", got=text, expected="a number with a unit, such as 90s, 15m, 2h or 30d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[match[2]]


def _show(line: str) -> None:
    """Write one line of a command's answer."""
    try:
        sys.stdout.write(line + "\n")
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
