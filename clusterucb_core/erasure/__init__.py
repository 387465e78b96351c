"""Erasure: the text and the features of withdrawn samples taken out of everything that the project wrote."""

from clusterucb_core.erasure.erasing import ErasureResult, Origin, erase_samples
from clusterucb_core.erasure.trainings import TrainedOn

__all__ = ["ErasureResult", "Origin", "TrainedOn", "erase_samples"]
