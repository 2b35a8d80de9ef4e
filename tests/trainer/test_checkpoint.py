from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ConfigError, TrainingDiverged
from engine.model import InterestModel, MindConfig
from tests.trainer.log_builders import draw_groups
from trainer.checkpoint import Checkpoints
from trainer.loop import Progress, train
from trainer.options import TrainOptions

CONFIG = MindConfig(dimensions=16, max_clicks=10, hidden=(8,))
OPTIONS = TrainOptions(batch_size=64, epochs=4.0, threads=1, negatives=16)


class Cut(Exception):
    """Ends a training from within, as a crash does."""


def cut_at(step: int) -> Callable[[Progress], None]:
    def end(progress: Progress) -> None:
        if progress.step == step:
            raise Cut

    return end


def same(first: InterestModel, second: InterestModel) -> bool:
    here, there = first.parts()[2], second.parts()[2]
    return all(np.array_equal(tensor, there[name]) for name, tensor in here.items())


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("step", [2, 9, 17])
def test_a_training_cut_at_any_step_goes_on_to_the_very_weights_of_one_that_was_not(tmp_path: Path, step: int) -> None:
    log, checkpoints = draw_groups(), Checkpoints(tmp_path, every_s=0.0)
    whole = train(log, CONFIG, OPTIONS)
    seen: list[Progress] = []

    with pytest.raises(Cut):
        train(log, CONFIG, OPTIONS, cut_at(step), checkpoints=checkpoints)
    resumed = train(log, CONFIG, OPTIONS, seen.append, checkpoints=checkpoints)

    assert seen[0].step == step
    assert seen[0].resumed_at == step - 1
    assert same(resumed, whole)
    assert files(tmp_path) == []  # nothing is left of a run that ended


def test_other_options_clicks_or_models_start_anew_and_leave_the_checkpoint_alone(tmp_path: Path) -> None:
    log, checkpoints = draw_groups(), Checkpoints(tmp_path, every_s=0.0)
    with pytest.raises(Cut):
        train(log, CONFIG, OPTIONS, cut_at(9), checkpoints=checkpoints)
    kept = files(tmp_path)

    for other in (replace(OPTIONS, seed=8), replace(OPTIONS, learning_rate=1e-3)):
        seen: list[Progress] = []
        train(log, CONFIG, other, seen.append, checkpoints=checkpoints)
        assert seen[0].resumed_at is None
    train(log, replace(CONFIG, interests=3), OPTIONS, checkpoints=checkpoints)

    assert files(tmp_path) == kept


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_said_and_left_and_training_starts_anew(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log, checkpoints = draw_groups(), Checkpoints(tmp_path, every_s=0.0)
    with pytest.raises(Cut):
        train(log, CONFIG, OPTIONS, cut_at(9), checkpoints=checkpoints)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "emptied": b""}[damage])
    seen: list[Progress] = []

    resumed = train(log, CONFIG, OPTIONS, seen.append, checkpoints=checkpoints)

    assert seen[0].step == 1
    assert same(resumed, train(log, CONFIG, OPTIONS))
    assert "checkpoint_unreadable" in capsys.readouterr().out


def test_a_training_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.trainer.test_checkpoint import CONFIG, OPTIONS, draw_groups
from trainer.checkpoint import Checkpoints
from trainer.loop import train
train(draw_groups(), CONFIG, OPTIONS, lambda at: print(at.step, at.resumed_at, flush=True),
      checkpoints=Checkpoints(Path({str(tmp_path)!r}), every_s=0.0))
"""
    random = np.random.default_rng(4)
    resumed: list[str] = []
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        resumed.append(process.stdout.readline().split()[1])
        time.sleep(float(random.uniform(0.0, 0.05)))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()

    went_on = train(draw_groups(), CONFIG, OPTIONS, checkpoints=Checkpoints(tmp_path, every_s=0.0))

    assert sum(step != "None" for step in resumed) >= 2
    assert same(went_on, train(draw_groups(), CONFIG, OPTIONS))


def test_checkpoints_are_written_no_more_often_than_asked(tmp_path: Path) -> None:
    now = [0.0]

    def ticking() -> float:
        now[0] += 1.0
        return now[0]

    written: list[int] = []
    last = 0

    def look(progress: Progress) -> None:
        nonlocal last
        last = progress.step
        written.extend(path.stat().st_mtime_ns for path in files(tmp_path))

    train(draw_groups(), CONFIG, OPTIONS, look, clock=ticking, checkpoints=Checkpoints(tmp_path, every_s=8.0))

    assert last > 16
    assert len(set(written)) == (last - 1) // 8  # a step takes a second; what the last step writes is not looked at


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_state(tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=1e30, warmup_share=0.5)

    with pytest.raises(TrainingDiverged, match=r"at step \d+: the .* is not finite.*no checkpoint was kept; lower"):
        train(draw_groups(), CONFIG, options)
    with pytest.raises(
        TrainingDiverged, match=r"not finite.*the last good state, of step \d+, is .*safetensors"
    ) as raised:
        train(draw_groups(), CONFIG, options, checkpoints=Checkpoints(tmp_path, every_s=0.0))

    (path,) = files(tmp_path)
    assert path == raised.value.checkpoint
    assert raised.value.kept is not None
    assert raised.value.kept < raised.value.step


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ConfigError, match="the checkpoint folder must be writable"):
        train(draw_groups(), CONFIG, OPTIONS, checkpoints=Checkpoints(tmp_path / "file", every_s=0.0))
