"""A training run: read the log, train, evaluate on the latest clicks, publish if no worse than popular; once or again.

    erasures, items, clicks -> ClickLog -> train on the earlier clicks -> Recall@50 on the later ones -> version

The published model is the one that was judged: it has not seen the held-out clicks, so its figures are true of it. The
popular lists beside it are of all clicks. Ctrl-C and SIGTERM stop a run between two steps; a version that is being
written is written and announced to its end first.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from engine import metrics
from engine.errors import EngineError, ModelError, NotEnoughClicks
from engine.model import InterestModel, MindConfig
from engine.model.device import choose_device
from engine.model.registry import Registry
from engine.settings import Settings
from trainer.evaluate import Evaluation, evaluate, split_by_time
from trainer.gate import comparable_version, first_click_ms, objection
from trainer.interrupt import Interrupts
from trainer.log import Reading, count_clicks, read_log
from trainer.loop import Progress, train
from trainer.options import TrainOptions
from trainer.popular import popular_items
from trainer.presets import recommended
from trainer.progress import Display
from trainer.publish import current_manifest, prepare, publish, publish_version_zero, read_announced
from trainer.samples import ClickLog

RETRY_S = 15.0
"""A periodic trainer that could not train tries again after this, or after its period if that is shorter."""
VERSION_ZERO_PATIENCE_S = 10.0
"""How long version 0000 waits for clicks to count; after that it is published empty."""

Outcome = Literal["published", "refused", "unchanged"]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RunResult:
    """How one run ended."""

    outcome: Outcome
    version: str | None = None
    evaluation: Evaluation | None = None
    seconds: float = 0.0


def run_training(
    settings: Settings,
    *,
    every_s: float | None = None,
    since_ms: int | None = None,
    last_s: float | None = None,
    version_zero_only: bool = False,
    force: bool = False,
    display: Display | None = None,
) -> list[RunResult]:
    """Train once, or every *every_s* seconds until Ctrl-C; return how the runs ended.

    Args:
        settings: everything a run depends on.
        every_s: seconds from one start to the next; None runs once. A run with no new clicks is skipped.
        since_ms: only clicks that the log accepted since this time.
        last_s: only clicks that the log accepted within so many seconds before each run.
        version_zero_only: only publish version 0000, unless a version was announced already.
        force: publish also what is no better than the popular list.
        display: where progress is shown; None takes the console.

    Raises:
        ConfigError: the port of a periodic trainer's metrics is taken.
        EngineError: a single run failed; a periodic one logs it and tries again.
    """
    display, interrupts, results = display or Display(), Interrupts(), list[RunResult]()
    with interrupts.installed():
        try:
            if version_zero_only:
                _publish_version_zero(settings, display, interrupts)
            elif every_s is None:
                results.append(_Run(settings, display, interrupts, force=force).run(_first_ms(since_ms, last_s)))
            else:
                port, host = settings.trainer_metrics_port, settings.metrics_host
                metrics.listen(port, host=host, setting="MINDSTREAM_TRAINER_METRICS_PORT")
                run = _Run(settings, display, interrupts, force=force, skip_unchanged=True)
                while True:
                    _run_and_wait(run, every_s, _first_ms(since_ms, last_s), results, display)
        except KeyboardInterrupt:
            display.say("Training stopped; nothing was left half-published.")
    return results


def _run_and_wait(run: _Run, every_s: float, since_ms: int | None, results: list[RunResult], display: Display) -> None:
    started, pause_s = time.monotonic(), every_s
    try:
        results.append(run.run(since_ms))
    except EngineError as error:
        pause_s = min(every_s, RETRY_S)
        display.say(f"{error}; trying again in {pause_s:g} s")
    time.sleep(max(0.0, started + pause_s - time.monotonic()))


class _Run:
    """One run: its settings, where it shows progress, and what may interrupt it."""

    def __init__(
        self,
        settings: Settings,
        display: Display,
        interrupts: Interrupts,
        *,
        force: bool = False,
        skip_unchanged: bool = False,
    ) -> None:
        self._settings = settings
        self._display = display
        self._interrupts = interrupts
        self._force = force
        self._skip_unchanged = skip_unchanged

    def run(self, since_ms: int | None) -> RunResult:
        """Go through the steps; count how it ended."""
        started = time.monotonic()
        try:
            result = self._run(since_ms)
        except EngineError as error:
            metrics.TRAINING_RUNS.labels("failed").inc()
            log.warning("training_failed", problem=str(error))
            raise
        seconds = time.monotonic() - started
        if result.outcome != "unchanged":
            metrics.TRAINING_RUNS.labels(result.outcome).inc()
            metrics.TRAINING_SECONDS.set(seconds)
            log.info("training_ended", outcome=result.outcome, version=result.version, seconds=round(seconds, 1))
        return dataclasses.replace(result, seconds=seconds)

    def _run(self, since_ms: int | None) -> RunResult:
        parent = current_manifest(self._settings)
        if self._skip_unchanged and parent is not None and self._is_unchanged(parent):
            self._display.say(f"No new clicks since version {parent['version']} was trained.")
            return RunResult("unchanged", parent["version"])
        reading = self._read(since_ms)
        if not read_announced(self._settings):
            self._publish_zero(reading)
        before, later = split_by_time(reading.log, self._settings.holdout_share)
        self._check_enough(reading, before)
        model = self._train(before, self._config(parent))
        serving = comparable_version(self._settings, parent, later, say=self._display.say)
        evaluation = self._evaluate(model, serving, before, later)
        problem = None if self._force else objection(evaluation, settings=self._settings)
        if problem is not None:
            self._display.say(f"Not published: {problem}; collect more clicks, or publish with --force.")
            return RunResult("refused", None, evaluation)
        return self._publish(model, reading, evaluation, parent, later)

    def _is_unchanged(self, parent: Mapping[str, Any]) -> bool:
        seen = (parent.get("training") or {}).get("log_ends")
        return bool(seen == _named(count_clicks(self._settings)))

    def _read(self, since_ms: int | None) -> Reading:
        with self._display.phase("Reading") as advance:
            reading = read_log(
                self._settings,
                since_ms=since_ms,
                on_progress=lambda at: advance(at.done, at.total, "clicks"),
            )
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(reading.skipped.items()))
        self._display.say(
            f"Read {reading.log.click_count:,} distinct clicks of {len(reading.log.histories):,} users and "
            f"{len(reading.log.items):,} catalog items" + (f"; left out: {left_out}" if left_out else "")
        )
        return reading

    def _publish_zero(self, reading: Reading) -> None:
        with self._interrupts.held():
            announced = publish_version_zero(self._settings, popular_items(reading.log), now_ms=now_ms())
        self._display.say(f"Published version {announced.model_version}, the popular lists.")

    def _check_enough(self, reading: Reading, before: ClickLog) -> None:
        clicks, users, least = reading.log.click_count, len(reading.log.histories), self._settings.train_min_clicks
        if clicks < least or all(len(history.clicks) < 2 for history in before.histories):
            needed = f"at least {least} clicks, and a user with two before the held-out ones"
            raise NotEnoughClicks(clicks=clicks, users=users, needed=needed)

    def _config(self, parent: Mapping[str, Any] | None) -> MindConfig:
        """Return the parent's config, so that interests keep their places, or the preset's; with our own window."""
        inherited: Mapping[str, Any] = {}
        if parent is not None:
            try:
                inherited = Registry(self._settings.registry).load(parent["version"]).config or {}
            except ModelError as error:
                log.warning("parent_not_inherited", version=parent["version"], problem=str(error))
        chosen = inherited or recommended()[0].to_dict()
        return MindConfig.from_dict({**chosen, "max_clicks": self._settings.window_max_clicks})

    def _train(self, before: ClickLog, config: MindConfig) -> InterestModel:
        last: Progress | None = None
        with self._display.phase("Training") as advance:

            def show(at: Progress) -> None:
                nonlocal last
                last = at
                advance(at.step, at.steps, f"steps, loss {at.loss:.3f}")

            model = train(before, config, train_options(self._settings), show)
        if last is not None:
            short = (
                f" (shortened from {last.planned_steps:,} to fit the time)" if last.steps < last.planned_steps else ""
            )
            self._display.say(
                f"Trained {last.step:,} steps{short}, {last.epochs:.1f} passes, in {last.seconds:.0f} s; "
                f"loss {last.loss:.3f}"
            )
        return model

    def _evaluate(
        self, model: InterestModel, serving: InterestModel | None, before: ClickLog, later: ClickLog
    ) -> Evaluation:
        with self._display.phase("Evaluating") as advance:
            judged = evaluate(model, before, later, max_clicks=self._settings.window_max_clicks, serving=serving)
            advance(judged.users, judged.users, "users")
        for method, recall in (
            ("model", judged.recall_at_50),
            ("popular", judged.popular_recall_at_50),
            ("item_cf", judged.itemcf_recall_at_50),
        ):
            metrics.RECALL_AT_50.labels(method).set(recall)
        self._display.say(
            f"Recall@50 {judged.recall_at_50:.4f} ± {judged.standard_error:.4f} on the later clicks of "
            f"{judged.users:,} users; popular {judged.popular_recall_at_50:.4f}, "
            f"item-CF {judged.itemcf_recall_at_50:.4f}"
            + (f", the version in service {judged.serving_recall_at_50:.4f}" if serving is not None else "")
        )
        return judged

    def _publish(
        self,
        model: InterestModel,
        reading: Reading,
        evaluation: Evaluation,
        parent: Mapping[str, Any] | None,
        later: ClickLog,
    ) -> RunResult:
        settings, click_range = self._settings, reading.range_ms
        manifest = {
            "parent": parent["version"] if parent else None,
            "metrics": evaluation.to_dict(),
            "training": {
                "clicks": reading.log.click_count,
                "users": len(reading.log.histories),
                "first_click_ms": click_range[0] if click_range else None,
                "last_click_ms": click_range[1] if click_range else None,
                "learned_before_ms": first_click_ms(later),
                "holdout_share": settings.holdout_share,
                "log_ends": _named(reading.ends),
            },
        }
        with self._display.phase("Indexing") as advance:
            parts = prepare(
                model,
                popular_items(reading.log),
                items=reading.log.items,
                manifest=manifest,
                threads=settings.train_threads,
                seed=settings.seed,
            )
            advance(len(parts.item_ids), len(parts.item_ids), "items")
        with self._interrupts.held():
            announced = publish(settings, parts, now_ms=now_ms())
            self._display.say(f"Published version {announced.model_version} with {len(parts.item_ids):,} items.")
        return RunResult("published", announced.model_version, evaluation)


def train_options(settings: Settings) -> TrainOptions:
    """Return how a run with *settings* learns."""
    return dataclasses.replace(
        recommended(sessions=settings.train_sessions)[1],
        batch_size=settings.train_batch_size,
        epochs=settings.train_epochs,
        max_seconds=settings.train_max_seconds,
        threads=settings.train_threads,
        seed=settings.seed,
        device=choose_device(settings.device),
    )


def now_ms() -> int:
    """Return wall time, UTC milliseconds."""
    return time.time_ns() // 1_000_000


def _publish_version_zero(settings: Settings, display: Display, interrupts: Interrupts) -> None:
    deadline = time.monotonic() + VERSION_ZERO_PATIENCE_S
    while sum(count_clicks(settings).values()) < settings.train_min_clicks and time.monotonic() < deadline:
        time.sleep(0.5)
    reading = read_log(settings)
    with interrupts.held():
        announced = read_announced(settings)
        if announced:
            display.say(f"Version {announced[-1].model_version} is announced already.")
            return
        zero = publish_version_zero(settings, popular_items(reading.log), now_ms=now_ms())
        display.say(f"Published version {zero.model_version}, popular lists of {reading.log.click_count:,} clicks.")


def _first_ms(since_ms: int | None, last_s: float | None) -> int | None:
    return since_ms if last_s is None else now_ms() - int(last_s * 1000)


def _named(ends: Mapping[int, int]) -> dict[str, int]:
    """Return *ends* as JSON keeps them."""
    return {str(partition): end for partition, end in sorted(ends.items())}
