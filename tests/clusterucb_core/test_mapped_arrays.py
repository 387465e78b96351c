import errno
import os

import numpy as np
import pytest

from clusterucb_core.mapped_arrays import new_mapped_array


def test_what_is_written_through_memory_is_in_the_file(tmp_path):
    array = new_mapped_array(tmp_path / "a.npy", np.float16, (3, 5))
    assert not array.any()
    array[1] = np.arange(5)
    array.flush()
    assert np.array_equal(np.load(tmp_path / "a.npy"), [[0] * 5, [0, 1, 2, 3, 4], [0] * 5])


def test_its_room_is_taken_before_anything_is_written(tmp_path):
    new_mapped_array(tmp_path / "a.npy", np.float32, (1000, 1000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 4_000_000


def test_a_full_disk_is_an_error_and_no_signal_that_ends_the_process(small_disk):
    with pytest.raises(OSError, match="No space left") as caught:
        new_mapped_array(small_disk / "a.npy", np.float32, (4 * os.statvfs(small_disk).f_bavail, 1024))
    assert caught.value.errno == errno.ENOSPC
