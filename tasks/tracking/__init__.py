from tasks.tracking.buffer import BUFFER
from tasks.tracking.records import PARENT_TAG, RUN_TAG, Record, Tracking
from tasks.tracking.runs import (
    finish_comparison_tracking,
    finish_tracking,
    start_comparison_tracking,
    start_tracking,
)

__all__ = [
    "BUFFER",
    "PARENT_TAG",
    "RUN_TAG",
    "Record",
    "Tracking",
    "finish_comparison_tracking",
    "finish_tracking",
    "start_comparison_tracking",
    "start_tracking",
]
