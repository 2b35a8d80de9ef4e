"""Every Prometheus metric of every process, in base units; `docs/metrics.md` explains each and a test compares the two.

Labels come from closed sets. No user or item id is ever a label; only `mindstream_model_info` carries a version.
Freshness is measured from the time the log accepted a click (LogAppendTime), so a replay of old data measures itself
rightly.
"""

from __future__ import annotations

import urllib.request

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from engine.errors import ConfigError

FRESHNESS_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60, 300, 1800)
STAGE_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)

CLICKS = Counter("mindstream_clicks_total", "Clicks taken from the log, by what became of them.", ["outcome"])
for _outcome in ("applied", "redelivered", "rejected", "erased"):
    CLICKS.labels(_outcome)
REJECTED = Counter("mindstream_rejected_total", "Messages sent to the dead letters, by reason.", ["reason"])
TOMBSTONES = Counter("mindstream_tombstones_ignored_total", "Records of `clicks` with no value; they erase nothing.")

STAGE = Histogram("mindstream_stage_seconds", "Time one batch spends in a stage.", ["stage"], buckets=STAGE_BUCKETS)
for _stage in ("decode", "store", "wait", "route", "search", "publish"):
    STAGE.labels(_stage)
CLICK_TO_INTERESTS = Histogram(
    "mindstream_click_to_interests_seconds",
    "From a click's acceptance by the log to the user's new interest vectors.",
    buckets=FRESHNESS_BUCKETS,
)
CLICK_TO_LIST = Histogram(
    "mindstream_click_to_list_seconds",
    "From a click's acceptance by the log to the acknowledged recall list.",
    buckets=FRESHNESS_BUCKETS,
)
CLICK_TO_VISIBLE = Histogram(
    "mindstream_click_to_visible_seconds",
    "From a click's acceptance by the log to a list that a query answers with.",
    buckets=FRESHNESS_BUCKETS,
)

DIRTY_USERS = Gauge("mindstream_dirty_users", "Users whose newest clicks are not in a list yet.")
CONSUMER_LAG = Gauge("mindstream_consumer_lag", "Clicks in this engine's partitions that it has not applied.")
LISTS_PUBLISHED = Counter("mindstream_lists_published_total", "Recall lists the broker acknowledged.")
LISTS_OVERWRITTEN = Counter(
    "mindstream_lists_overwritten_total",
    "Users refreshed again because an older list, of an engine that had lost the partition, came after the newest.",
)
LISTS_FAILED = Counter("mindstream_lists_failed_total", "Users given up because no list could be made of their window.")
UNKNOWN_ITEMS = Counter(
    "mindstream_unknown_items_total",
    "Clicks, in windows as they were refreshed, on items that the version did not know or the catalog had removed.",
)
REFRESH_FAILURES = Counter("mindstream_refresh_failures_total", "Micro-batches that were given back to be tried again.")
OWNED_PARTITIONS = Gauge("mindstream_owned_partitions", "Partitions of `clicks` assigned to this engine.")

STORES_OPENED = Counter(
    "mindstream_stores_opened_total",
    "Partition stores opened when a partition was taken over, by their base.",
    ["base"],
)
for _base in ("local", "checkpoint", "log"):
    STORES_OPENED.labels(_base)
STORES_SET_ASIDE = Counter("mindstream_stores_set_aside_total", "Damaged partition stores moved out of the way.")
LOG_GAPS = Counter("mindstream_log_gaps_total", "Partitions read on from behind a gap in the log that was accepted.")
CHECKPOINTS = Counter("mindstream_checkpoints_total", "Checkpoints of partition stores, by outcome.", ["outcome"])
for _outcome in ("written", "failed"):
    CHECKPOINTS.labels(_outcome)
CHECKPOINT_SECONDS = Gauge("mindstream_checkpoint_seconds", "How long the last checkpoint took to make and to send.")
CHECKPOINT_LAG = Gauge(
    "mindstream_checkpoint_lag", "Offsets that this engine's partitions have applied since their last checkpoints."
)

MODEL_INFO = Gauge("mindstream_model_info", "1 for the model version in service.", ["version"])
MODEL_AGE = Gauge("mindstream_model_trained_timestamp_seconds", "When the version in service was made, Unix time.")
USERS_ERASED = Counter("mindstream_users_erased_total", "Erasures that were carried out in a partition store.")
ERASURES_REFUSED = Counter("mindstream_erasures_refused_total", "Records of `erasures` that are none.")

INDEX_DELTA = Gauge("mindstream_index_delta_items", "Items that are searched beside the index: new or changed since.")
INDEX_REBUILDS = Counter(
    "mindstream_index_rebuilds_total", "Indexes built again while serving, by outcome.", ["outcome"]
)
for _outcome in ("taken", "failed"):
    INDEX_REBUILDS.labels(_outcome)
ITEMS_WITHOUT_VECTOR = Gauge(
    "mindstream_items_without_vector", "Items of the catalog that the version in service can't find by anything."
)

SWAPS = Counter("mindstream_swaps_total", "Model versions announced, by what became of them.", ["outcome"])
for _outcome in ("swapped", "refused"):
    SWAPS.labels(_outcome)
LISTS_ON_CURRENT_VERSION = Gauge(
    "mindstream_lists_on_current_version_ratio",
    "Share of the users with a list whom the version in service has refreshed.",
)
RECALL_AUDIT = Gauge(
    "mindstream_recall_at_k_audit", "Share of the items of sampled lists, made by exact search, that the lists hold."
)
INDEX_INFO = Gauge("mindstream_index_info", "1 for what searches the items of the version loaded last.", ["backend"])
INDEX_BACKENDS = ("hnsw", "exact", "exact_half")
for _backend in INDEX_BACKENDS:
    INDEX_INFO.labels(_backend)
INDEX_EF = Gauge("mindstream_index_ef", "Candidates that a search of the index looks at now.")
POOL_BOUND = Gauge(
    "mindstream_pool_bound", "Share of its length that an interest moves at the most without a new search, as of now."
)
INTERESTS = Counter("mindstream_interests_total", "Interests in use, by how their items were found.", ["way"])
for _way in ("searched", "scored_again"):
    INTERESTS.labels(_way)
CANDIDATE_POOLS = Gauge("mindstream_candidate_pools", "Users whose last searches are kept to be scored again.")

CATALOG_ITEMS = Gauge("mindstream_catalog_items", "Items of the catalog, removed ones not counted.")
ITEMS_REJECTED = Counter(
    "mindstream_items_rejected_total", "Records of `items` that could not be taken, by reason.", ["reason"]
)
LISTS_HELD = Gauge("mindstream_lists_held", "Recall lists that this query service answers from.")
LISTS_LAG = Gauge("mindstream_lists_lag", "Records of `recall-lists` that this query service has not applied.")
LIST_RECORDS_REFUSED = Counter(
    "mindstream_list_records_refused_total", "Records of `recall-lists` without key or order, passed over."
)
LOG_CLICKS = Gauge("mindstream_log_clicks", "Records the `clicks` topic holds, as the query service last saw.")
REQUESTS = Counter("mindstream_http_requests_total", "Answered HTTP requests.", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "mindstream_http_request_seconds", "Time to answer an HTTP request.", ["route"], buckets=STAGE_BUCKETS
)
ANSWERS = Counter("mindstream_answers_total", "Recall lists answered, by where they came from.", ["source"])
ANSWER_SOURCES = ("personal", "popular", "searched", "ad_hoc")
for _source in ANSWER_SOURCES:
    ANSWERS.labels(_source)

TRAINING_RUNS = Counter("mindstream_training_runs_total", "Training runs, by how they ended.", ["outcome"])
for _outcome in ("published", "refused", "failed"):
    TRAINING_RUNS.labels(_outcome)
TRAINING_SECONDS = Gauge("mindstream_training_seconds", "How long the last training run took.")
RECALL_AT_50 = Gauge(
    "mindstream_recall_at_50", "Recall@50 on the held-out clicks of the last training run.", ["method"]
)
for _method in ("model", "popular", "item_cf"):
    RECALL_AT_50.labels(_method)


def show_model(version: str) -> None:
    """Make *version* the only one that `mindstream_model_info` names."""
    MODEL_INFO.clear()
    MODEL_INFO.labels(version).set(1)


def show_index(backend: str) -> None:
    """Make *backend* the only one that `mindstream_index_info` names."""
    for known in INDEX_BACKENDS:
        INDEX_INFO.labels(known).set(known == backend)


def render() -> tuple[bytes, str]:
    """Return every metric of this process in Prometheus' text format, and the content type to send it with."""
    return generate_latest(), CONTENT_TYPE_LATEST


def listen(port: int, *, host: str, setting: str) -> None:
    """Serve the metrics of this process at `http://host:port/metrics`; port 0 serves none.

    Raises:
        ConfigError: the port, which *setting* names, can't be had.
    """
    try:
        if port:
            start_http_server(port, addr=host)
    except OSError as error:
        raise ConfigError(setting, got=port, expected=f"a free port of {host}, or 0 for none") from error


def scrape(address: str) -> dict[str, float]:
    """Return the samples at *address* by name and labels, written as Prometheus writes them.

    Raises:
        OSError: nothing answers there.
    """
    with urllib.request.urlopen(address, timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {_sample_name(sample.name, sample.labels): sample.value for family in families for sample in family.samples}


def _sample_name(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
