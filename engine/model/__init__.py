"""Windows to interest vectors, items to item vectors: MIND, and the registry that keeps trained versions.

Importing this package needs torch, safetensors and NumPy alone; `registry` is imported by name where it is used.
"""

from engine.model.config import MindConfig
from engine.model.features import Interests, UserInput
from engine.model.mind import InterestModel
from engine.model.vocabulary import ItemInput, Vocabulary

__all__ = [
    "InterestModel",
    "Interests",
    "ItemInput",
    "MindConfig",
    "UserInput",
    "Vocabulary",
]
