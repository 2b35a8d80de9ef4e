"""A training's checkpoint: all that a run needs to go on where it was, bit for bit, after any crash.

One safetensors file per run, named by the fingerprint of everything that the run depends on: model, options, clicks,
vocabulary, build. It is written beside its place, synced and renamed, so it is whole or absent, and only while every
weight is finite, so it never holds a diverged state. A run that ends deletes it. No pickle: numbers are tensors, the
rest is JSON in the file's header, with a checksum of the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.durable import sync
from engine.errors import ConfigError
from engine.model import MindConfig, Vocabulary
from engine.model.network import MindNetwork
from trainer.samples import Samples

FORMAT = "1"
HEADER = "position"
WEIGHTS, OPTIMIZER, TORCH_RANDOM, ORDER = "weights.", "optimizer.", "random", "order"
"""Names, or how they begin, of what the file holds."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Position:
    """How far a training has come, without the weights."""

    step: int
    steps: int
    """Steps of the plan in force."""
    seconds: float
    """Wall time of the steps so far."""
    timed: tuple[int, float]
    """Step and seconds that the plan was last held against the clock at."""
    recent: tuple[float, ...]
    """The last losses."""
    random: dict[str, Any]
    """State of the NumPy generator."""
    order: np.ndarray
    """(S,) int64, the samples of this pass that are still to come."""


class Checkpoint:
    """The file of one run."""

    def __init__(self, path: Path, *, every_s: float) -> None:
        self.path = path
        self.step: int | None = None
        """The step that was last written or read; None before."""
        self._every_s, self._written_s = every_s, 0.0

    def is_due(self, seconds: float) -> bool:
        """Whether a training of so many seconds should write."""
        return seconds - self._written_s >= self._every_s

    def write(self, position: Position, network: MindNetwork, optimizer: torch.optim.Optimizer) -> None:
        """Replace the checkpoint by the state after *position*; the old one stays until the new one is on disk.

        Raises:
            ConfigError: the folder can't be written.
        """
        tensors = _tensors(position, network, optimizer)
        values = {**asdict(position), "format": FORMAT, "checksum": _checksum(tensors)}
        del values["order"]
        beside = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, {HEADER: json.dumps(values)})
            sync(beside)
            beside.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise ConfigError(
                "the checkpoint folder", got=str(self.path.parent), expected=f"writable ({error})"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()
        self.step, self._written_s = position.step, position.seconds

    def read(self, network: MindNetwork, optimizer: torch.optim.Optimizer) -> Position | None:
        """Put *network*, *optimizer* and torch's generator where the checkpoint was and return how far that is.

        None where there is no checkpoint, or one that can't be read, which is said in the log; nothing is changed then.
        """
        if not self.path.is_file():
            return None
        try:
            values, tensors = _load(self.path)
            step, seconds = values.pop("timed")
            recent = tuple(values.pop("recent"))
            position = Position(**values, timed=(step, seconds), recent=recent, order=tensors[ORDER].numpy())
            network.load_state_dict(_named(tensors, WEIGHTS))
            _restore(optimizer, _named(tensors, OPTIMIZER))
            torch.set_rng_state(tensors[TORCH_RANDOM])
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            log.warning("checkpoint_unreadable", path=str(self.path), problem=str(error), remedy="training starts anew")
            return None
        self.step, self._written_s = position.step, position.seconds
        return position

    def clear(self) -> None:
        """Delete the checkpoint: the run has ended."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where runs keep their checkpoints, and how often they write."""

    folder: Path
    every_s: float = 60.0
    """Seconds of training between two writes."""

    def of(self, fingerprint: str) -> Checkpoint:
        """Return the checkpoint of the run with this fingerprint, which need not exist."""
        return Checkpoint(self.folder / f"training-{fingerprint[:24]}.safetensors", every_s=self.every_s)


def fingerprint(
    samples: Samples, vocabulary: Vocabulary, item_field_rows: np.ndarray, config: MindConfig, options: Any
) -> str:
    """Return the SHA-256, in hex, of everything that decides how a training goes."""
    settings = [config.to_dict(), asdict(options), vocabulary.to_dict(), torch.__version__, sys.version, FORMAT]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    arrays: Iterable[np.ndarray] = (*asdict(samples).values(), item_field_rows)
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _tensors(position: Position, network: MindNetwork, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {WEIGHTS + name: tensor for name, tensor in network.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{number}.{name}": torch.as_tensor(tensor) for name, tensor in state.items()}
    tensors |= {TORCH_RANDOM: torch.get_rng_state(), ORDER: torch.from_numpy(position.order.copy())}
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the header says, without format and checksum, and the tensors.

    Raises:
        ValueError: another build wrote the file, or it is damaged.
    """
    with safe_open(path, framework="pt") as file:
        values = json.loads((file.metadata() or {})[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if values.pop("format") != FORMAT:
        raise ValueError(f"not of format {FORMAT}")
    if values.pop("checksum") != _checksum(tensors):
        raise ValueError("its checksum is not that of its tensors")
    return values, tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
