"""The contest: every method of one run answers the same questions and is judged by the same rules."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from engine.merge import ListLimits
from trainer.checkpoint import Checkpoints
from trainer.loop import Progress
from trainer.offline.baselines import ItemCf, Popular, UserCf
from trainer.offline.cold import judge_cold
from trainer.offline.cooccurrence import Cooccurrence, count_cooccurrence
from trainer.offline.diversity import Categories, category_figures, interest_figures
from trainer.offline.ease import MOST_ITEMS, tuned_ease
from trainer.offline.export import export_vectors
from trainer.offline.metrics import judge
from trainer.offline.neural import InterestMethod, single_vector, train_method, with_extractor
from trainer.offline.options import BenchOptions
from trainer.offline.recall import Recalled, recall_lists
from trainer.offline.results import Judged, Row, judge_answers
from trainer.offline.search import Answers, Method, answer
from trainer.offline.sets import OfflineSet, Part
from trainer.offline.two_tower import TwoTower
from trainer.options import TrainOptions
from trainer.presets import Preset, paper
from trainer.progress import Advance, Display


class Contest:
    """The methods of one run over one set; `rows` yields them as they are done."""

    def __init__(
        self, made: OfflineSet, options: BenchOptions, *, limits: ListLimits, cache: Path, display: Display
    ) -> None:
        self._set, self._options, self._limits = made, options, limits
        self._cache, self._display = cache, display
        self._part = made.training(valid=options.valid)
        self._questions = made.questions(valid=options.valid)
        self._categories = Categories.of(made, self._part)
        self._counts = lru_cache(maxsize=2)(self._count)

    def rows(self) -> Iterator[Row]:
        """Yield the baselines, then the model by number of interests."""
        if self._options.only != "model":
            yield from self._baselines()
        if self._options.only != "baselines":
            config, _options = self._options.chosen_preset(sessions=self._set.of_sessions)
            for interests in self._options.interests or (None,):
                yield self._model(config.interests if interests is None else interests)

    def _baselines(self) -> Iterator[Row]:
        items = self._set.item_count
        yield self._row(lambda: Popular(self._part, items=items), note="clicks in training")
        yield self._row(lambda: ItemCf(self._counts(self._part)), note="cosine, last 20 clicks, decay 0.8")
        yield self._row(lambda: UserCf(self._part, items=items), note="200 neighbors, last 20 clicks, decay 0.8")
        yield self._ease()
        yield self._single()
        yield self._row(self._timed_tower, note="mean of clicks, in-batch softmax")

    def _count(self, part: Part) -> Cooccurrence:
        return count_cooccurrence(part.sequences, items=self._set.item_count)

    def _row(self, make: Callable[[], Method], *, note: str) -> Row:
        started = time.monotonic()
        method = make()
        seconds = time.monotonic() - started
        return Row(method.name, False, [self._judge(self._answer(method), seconds=seconds)], note)

    def _ease(self) -> Row:
        started = time.monotonic()
        method, choice = tuned_ease(
            self._set.train,
            self._set.valid,
            self._part,
            counts=self._counts,
            cache=self._cache,
            say=self._display.say,
        )
        note = f"lambda {choice.ridge:g}, decay {choice.decay:g}, chosen on valid"
        if self._set.item_count > MOST_ITEMS:
            note += f"; pairs beyond the most clicked items by item-CF, times {choice.rest_weight:g}"
        return Row(method.name, False, [self._judge(self._answer(method), seconds=time.monotonic() - started)], note)

    def _single(self) -> Row:
        config, options = single_vector()
        judged = []
        for seed in self._seeds(options):
            method, seconds = self._train("single vector", (config, self._timed(options, seed)))
            judged.append(self._judge(self._recall(method).answers, seconds=seconds))
        return Row("single vector", False, judged, "YouTube DNN: mean of clicks, ReLU layers, sampled softmax")

    def _timed_tower(self) -> TwoTower:
        config, options = paper()
        with self._display.phase("two-tower") as advance:
            timed = self._timed(options, options.seed)
            return TwoTower(
                self._set, self._part, config, timed, on_progress=lambda done, total: advance(done, total, "")
            )

    def _model(self, interests: int) -> Row:
        config, options = self._options.chosen_preset(sessions=self._set.of_sessions)
        config = with_extractor(replace(config, interests=interests), self._options.extractor)
        name = f"{self._options.preset} K={config.interests}"
        if self._options.extractor:
            name = f"{self._options.extractor}, {name}"
        judged = []
        for seed in self._seeds(options):
            method, seconds = self._train(name, (config, self._timed(options, seed)))
            judged.append(self._judge_model(method, seconds=seconds))
            if self._options.export is not None and self._is_first(interests, seed, options):
                export_vectors(self._options.export, method, self._set, self._questions)
        return Row(name, True, judged, interests=config.interests)

    def _is_first(self, interests: int, seed: int, options: TrainOptions) -> bool:
        return interests == (*self._options.interests, interests)[0] and seed == self._seeds(options)[0]

    def _seeds(self, options: TrainOptions) -> tuple[int, ...]:
        return self._options.seeds or (options.seed,)

    def _timed(self, options: TrainOptions, seed: int) -> TrainOptions:
        seconds = self._options.max_seconds or options.max_seconds
        return replace(options, seed=seed, max_seconds=seconds, threads=self._options.threads)

    def _train(self, name: str, preset: Preset) -> tuple[InterestMethod, float]:
        config, options = preset
        started = time.monotonic()
        with self._display.phase(f"{name}, seed {options.seed}") as advance:
            method = train_method(
                self._set,
                self._part,
                config,
                options,
                name=name,
                on_progress=lambda step: _show(advance, step),
                checkpoints=None if self._options.checkpoints is None else Checkpoints(self._options.checkpoints),
            )
        return method, time.monotonic() - started

    def _answer(self, method: Method) -> Answers:
        with self._display.phase(f"{method.name} answers") as advance:
            return answer(
                method,
                self._questions,
                items=self._set.item_count,
                on_done=lambda done, total: advance(done, total, ""),
            )

    def _judge(self, answers: Answers, *, seconds: float) -> Judged:
        return judge_answers(
            answers,
            self._questions,
            items=self._set.item_count,
            categories=self._categories,
            seconds=seconds,
        )

    def _recall(self, method: InterestMethod) -> Recalled:
        with self._display.phase(f"{method.name} answers") as advance:
            return recall_lists(
                method,
                self._questions,
                ranks=self._set.ranks,
                limits=self._limits,
                on_done=lambda done, total: advance(done, total, ""),
            )

    def _judge_model(self, method: InterestMethod, *, seconds: float) -> Judged:
        questions = self._questions
        found = self._recall(method)
        judged = self._judge(found.answers, seconds=seconds)
        served = judge(found.served, questions)
        if self._categories is not None:
            served |= category_figures(found.served, questions, self._categories)
        interests = interest_figures(found.vectors, found.used, found.answers.excluded, method.item_vectors)
        cold = judge_cold(method, self._set, self._part, questions)
        return replace(
            judged,
            extra=judged.extra | interests,
            served=served,
            cold=None if cold is None else cold.to_dict(),
        )


def _show(advance: Advance, progress: Progress) -> None:
    resumed = "" if progress.resumed_at is None else f", resumed at step {progress.resumed_at:,}"
    advance(progress.step, progress.steps, f"loss {progress.loss:.3f}, {progress.epochs:.2f} passes{resumed}")
