"""New array files that are filled through memory, with their room on the disk taken before.

Writes the file that it is given.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


def new_mapped_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    """Return a new `.npy` file of zeros, mapped to be written.

    A page that the disk has no room for would end the process by a signal when it is written, without a word.

    Args:
        path: the file.
        dtype: of its entries.
        shape: of the array.

    Raises:
        OSError: the disk has no room for it.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
