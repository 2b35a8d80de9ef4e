"""Where tensors live, the CPU, or CUDA where there is one, and how many threads work on them."""

from __future__ import annotations

import torch

from engine.errors import ConfigError


def choose_device(wanted: str) -> str:
    """Return `cpu` or `cuda` for the setting *wanted*; `auto` takes CUDA where there is one.

    Raises:
        ConfigError: CUDA is demanded and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise ConfigError("MINDSTREAM_DEVICE", got="cuda", expected="auto or cpu where torch finds no CUDA device")
    return "cuda" if has_cuda and wanted != "cpu" else "cpu"


def use_threads(count: int) -> None:
    """Let every thread of this process that begins to use torch from now on compute with *count* threads."""
    torch.set_num_threads(count)
