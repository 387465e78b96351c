"""The errors that ClusterUCB raises on purpose, in one tree.

ClusterUcbError
├── InvalidConfig       a configuration value that cannot work
├── InvalidPool         a pool source that cannot be read at all
├── InvalidTarget       a target file or row that cannot be used
├── InvalidModel        a model, adapter or tokenizer that cannot be used
├── TrainingDiverged    a training whose loss or weights stopped being finite
├── TrainingFailed      a training process that ended without a result
├── BudgetError         a gradient budget that cannot be spent as asked
├── TooManyExcluded     more samples excluded than the configuration allows
├── MissingArtifact     a file or folder that an earlier stage should have left
├── StaleArtifact       an artifact whose content does not fit its manifest
│   └── DamagedCatalog  a catalog, or a backup of it, whose bytes are not those that were written
├── StorageUnavailable  an object store that could not be read or written
├── StorageFull         a disk without room for what was to be written
├── StorageNotWritable  a folder that cannot be written, or a disk that failed
├── UnknownVersion      a selection version that the catalog does not hold
├── UnknownSample       a sample id that the catalog does not hold
├── NoSandbox           code of a model that cannot be isolated on this machine
├── CatalogBusy         the catalog stayed locked by another process
├── RunStopped          work that was asked to stop before its end
├── TrackingUnavailable MLflow could not take a run that is to fail without it
└── ServerUnavailable   the Prefect server did not answer, or could not be started

Every message says what is wrong, the value seen, and what to do.
"""

from collections.abc import Iterator


class ClusterUcbError(Exception):
    """The base of all errors that ClusterUCB raises on purpose."""


class InvalidConfig(ClusterUcbError):
    """A configuration value cannot work."""


class InvalidPool(ClusterUcbError):
    """A pool source cannot be read at all."""


class InvalidTarget(ClusterUcbError):
    """A target file or row cannot be used."""


class InvalidModel(ClusterUcbError):
    """A model, adapter or tokenizer cannot be used."""


class TrainingDiverged(ClusterUcbError):
    """A training's loss, weights or optimiser state stopped being finite."""


class TrainingFailed(ClusterUcbError):
    """A training process ended without a result."""


class BudgetError(ClusterUcbError):
    """A gradient budget cannot be spent as asked."""


class TooManyExcluded(ClusterUcbError):
    """More samples were excluded than the configuration allows."""


class MissingArtifact(ClusterUcbError):
    """A file or folder that an earlier stage should have left is absent."""


class StaleArtifact(ClusterUcbError):
    """An artifact's content does not fit its manifest."""


class DamagedCatalog(StaleArtifact):
    """The bytes of a catalog, or of a backup of it, are not those that were written."""


class StorageUnavailable(ClusterUcbError):
    """The object store of artifacts could not be read or written."""


class StorageFull(ClusterUcbError):
    """A disk has no room for what was to be written."""


class StorageNotWritable(ClusterUcbError):
    """A folder cannot be written, or its disk failed."""


class UnknownVersion(ClusterUcbError):
    """The catalog holds no such selection version."""


class UnknownSample(ClusterUcbError):
    """The catalog holds no such sample."""


class NoSandbox(ClusterUcbError):
    """Code that a model wrote cannot be isolated on this machine."""


class CatalogBusy(ClusterUcbError):
    """The catalog stayed locked by another process."""


class RunStopped(ClusterUcbError):
    """Work was asked to stop before its end."""


class TrackingUnavailable(ClusterUcbError):
    """MLflow could not take a run that is to fail without it."""


class ServerUnavailable(ClusterUcbError):
    """The Prefect server did not answer, or one of the run's own could not be started."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and what was being handled when it was raised."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        part = waiting.pop(0)
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += [part.__cause__, None if part.__suppress_context__ else part.__context__]
