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
├── UnknownVersion      a selection version that the catalog does not hold
├── UnknownSample       a sample id that the catalog does not hold
├── NoSandbox           code of a model that cannot be isolated on this machine
├── CatalogBusy         the catalog stayed locked by another process
└── TrackingUnavailable MLflow could not take a run that is to fail without it

Every message says what is wrong, the value seen, and what to do.
"""


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


class UnknownVersion(ClusterUcbError):
    """The catalog holds no such selection version."""


class UnknownSample(ClusterUcbError):
    """The catalog holds no such sample."""


class NoSandbox(ClusterUcbError):
    """Code that a model wrote cannot be isolated on this machine."""


class CatalogBusy(ClusterUcbError):
    """The catalog stayed locked by another process."""


class TrackingUnavailable(ClusterUcbError):
    """MLflow could not take a run that is to fail without it."""
