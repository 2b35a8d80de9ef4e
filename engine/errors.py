"""Every exception of the project, and the wording of every message.

An error takes values, keeps them as attributes and builds its own sentence: subject, what was expected, what came,
where, and what to do next. Callers never write prose.

    EngineError
      ConfigError            at start: a setting is missing or contradicts another -> exit 2
      MalformedEvent         one message can't be taken -> dead letters, counted, the stream goes on
      LogError               the log (Kafka) can't be reached or is not what it was
      ListTooLarge           one user's list doesn't fit a message -> none for that user, the others go on
      StoreError             WindowDecodeError, StoreFormatError, StoreBusy, DamagedStore, StoreNotWritten,
                             CheckpointsUnusable, DamagedCheckpoint
      EngineFrozen           the engine stood still for longer than its session -> it ends, and is started again
      ModelError             UnknownVersion, IncompatibleVersion, DamagedVersion ... -> keep serving the current version
      ItemIndexError         DimensionMismatch, DamagedIndex
      SourceError            a data set can't be read
"""

from __future__ import annotations


class EngineError(Exception):
    """Anything this project raises on purpose."""


class ConfigError(EngineError):
    """A setting is missing, out of range or contradicts another; the process exits with 2."""

    def __init__(self, key: str, *, got: object, expected: str) -> None:
        self.key, self.got, self.expected = key, got, expected
        super().__init__(f"{key} must be {expected}, got {got!r}")


class SetupError(EngineError):
    """The machine lacks something that the command needs."""

    def __init__(self, what: str, *, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}; {remedy}")


class MalformedEvent(EngineError):
    """One message can't be taken; *reason* is a word from a closed set, *detail* says more.

    The reason is a metric label and a dead letter's field, so it never holds anything the sender wrote.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class LogError(EngineError):
    """The log can't be reached, or a topic is not what this process was started on."""

    def __init__(self, subject: str, *, problem: str, remedy: str) -> None:
        self.subject, self.problem, self.remedy = subject, problem, remedy
        super().__init__(f"{subject} {problem}; {remedy}")


class ListTooLarge(EngineError):
    """A recall list does not fit a message of the log."""

    def __init__(self, *, got: int, allowed: int, clicks: int) -> None:
        self.got, self.allowed, self.clicks = got, allowed, clicks
        super().__init__(
            f"a recall list with a window of {clicks} clicks has {got} bytes, a message may have {allowed}; "
            "lower MINDSTREAM_WINDOW_MAX_CLICKS or MINDSTREAM_LIST_SIZE"
        )


class StoreError(EngineError):
    """A store on disk can't be used."""


class StoreFormatError(StoreError):
    """A store was written for something else: another format, topic, cluster or setting."""

    def __init__(self, path: object, *, field: str, stored: object, expected: object, remedy: str) -> None:
        self.path, self.field, self.stored, self.expected, self.remedy = path, field, stored, expected, remedy
        super().__init__(f"store {path} has {field} {stored!r}, this process expects {expected!r}; {remedy}")


class EngineFrozen(EngineError):
    """This process stood still so long that its partitions may be another engine's."""

    def __init__(self, frozen_s: float, *, longest_s: float) -> None:
        self.frozen_s, self.longest_s = frozen_s, longest_s
        super().__init__(
            f"this engine stood still for {frozen_s:.1f} s, and after {longest_s:.1f} s another one may have its "
            "partitions; nothing more is published, start it again"
        )


class StoreBusy(StoreError):
    """Another process holds the store's lock."""

    def __init__(self, path: object) -> None:
        self.path = path
        super().__init__(
            f"store {path} is in use by another process; stop that one, or give this one its own MINDSTREAM_DATA_DIR"
        )


class DamagedStore(StoreError):
    """RocksDB refuses to open a store, or to read it."""

    def __init__(self, path: object, *, cause: str) -> None:
        self.path, self.cause = path, cause
        super().__init__(
            f"store {path} can't be read: {cause}; an engine sets a damaged store aside at its start and rebuilds it, "
            "a query service's list store can be deleted"
        )


class StoreNotWritten(StoreError):
    """RocksDB fails to write to a store that is open; what stands in it is whole."""

    def __init__(self, path: object, *, cause: str) -> None:
        self.path, self.cause = path, cause
        super().__init__(
            f"store {path} can't be written: {cause}; make room on its disk or mend it, and start again: "
            "what is missing comes from the log"
        )


class CheckpointsUnusable(StoreError):
    """The place where checkpoints are kept can't be read or written."""

    def __init__(self, url: object, *, cause: object) -> None:
        self.url, self.cause = url, cause
        super().__init__(f"the checkpoints at {url} can't be used: {cause}; mend it or MINDSTREAM_CHECKPOINT_URL")


class DamagedCheckpoint(StoreError):
    """A file of a checkpoint is not what its manifest says."""

    def __init__(self, path: object, *, file: str, got: object, expected: object) -> None:
        self.path, self.file, self.got, self.expected = path, file, got, expected
        super().__init__(
            f"checkpoint {path} was not used: {file} has {got}, expected {expected}; an older one or the log serves"
        )


class WindowDecodeError(StoreError):
    """Stored bytes are not a click of a format that this build reads."""

    def __init__(self, *, format_version: int, readable: str) -> None:
        self.format_version, self.readable = format_version, readable
        super().__init__(
            f"a stored click has format {format_version}; this build reads {readable}; "
            "run a newer engine, or delete the store and replay"
        )


class ModelError(EngineError):
    """A model version can't be made, published or served."""


class UnknownVersion(ModelError):
    """The registry has no such version."""

    def __init__(self, version: str, *, registry: object) -> None:
        self.version, self.registry = version, registry
        super().__init__(
            f"model version {version} is not in {registry}; `mindstream models list` shows the published ones"
        )


class IncompatibleVersion(ModelError):
    """A version's parts don't fit one another, or not this build."""

    def __init__(self, version: str, *, part: str, got: object, expected: object) -> None:
        self.version, self.part, self.got, self.expected = version, part, got, expected
        super().__init__(
            f"model version {version} was not loaded: {part} is {got}, expected {expected}; train and publish it again"
        )


class DamagedVersion(ModelError):
    """A version's file is not what its manifest says."""

    def __init__(self, version: str, *, file: str, got: object, expected: object) -> None:
        self.version, self.file, self.got, self.expected = version, file, got, expected
        super().__init__(
            f"model version {version} was not loaded: {file} has {got}, the manifest says {expected}; publish it again"
        )


class UnusableInterests(ModelError):
    """A model answered windows with interests that nothing can be searched with."""

    def __init__(self, version: str, *, users: int, of: int) -> None:
        self.version, self.users, self.of = version, users, of
        super().__init__(
            f"model version {version} made interests that are not finite numbers for {users} of {of} users; "
            "train and publish it again"
        )


class InvalidInput(ModelError):
    """A value given to a model is nothing that it can compute with."""

    def __init__(self, subject: str, *, got: object, expected: str) -> None:
        self.subject, self.got, self.expected = subject, got, expected
        super().__init__(f"{subject} must be {expected}, got {got!r}; correct or leave it out where it is read")


class RegistryUnusable(ModelError):
    """The place where model versions are kept can't be read or written."""

    def __init__(self, registry: object, *, cause: object) -> None:
        self.registry, self.cause = registry, cause
        super().__init__(
            f"the model registry {registry} can't be used: {cause}; "
            "make room or mend MINDSTREAM_REGISTRY_URL; engines go on with the version they serve"
        )


class NotEnoughClicks(ModelError):
    """The log holds too little to train on."""

    def __init__(self, *, clicks: int, users: int, needed: str) -> None:
        self.clicks, self.users, self.needed = clicks, users, needed
        super().__init__(f"nothing was trained: {clicks} clicks of {users} users, needed {needed}; send more clicks")


class TrainingDiverged(ModelError):
    """The loss or a weight of a training is no finite number any more."""

    def __init__(self, what: str, *, step: int, loss: float, rate: float, checkpoint: object, kept: int | None) -> None:
        self.what, self.step, self.loss, self.rate = what, step, loss, rate
        self.checkpoint, self.kept = checkpoint, kept
        good = "no checkpoint was kept" if kept is None else f"the last good state, of step {kept}, is {checkpoint}"
        super().__init__(
            f"training stopped at step {step}: {what} is not finite, the last loss that was is {loss:.4g}, the "
            f"learning rate {rate:.3g}; {good}; lower the learning rate, or look for extreme weights among the clicks"
        )


class ItemIndexError(EngineError):
    """An item index can't be built, loaded or asked."""


class DimensionMismatch(ItemIndexError):
    """Vectors of another length than the index's."""

    def __init__(self, *, got: int, expected: int) -> None:
        self.got, self.expected = got, expected
        super().__init__(
            f"vectors have {got} dimensions but the item index has {expected}; use both from one model version"
        )


class DamagedIndex(ItemIndexError):
    """A saved index fails its checks."""

    def __init__(self, path: object, *, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"item index {path} was not loaded: {problem}; publish the model version again")


class SourceError(EngineError):
    """A data set can't be read as events."""

    def __init__(self, path: object, *, problem: str, remedy: str) -> None:
        self.path, self.problem, self.remedy = path, problem, remedy
        super().__init__(f"{path}: {problem}; {remedy}")
