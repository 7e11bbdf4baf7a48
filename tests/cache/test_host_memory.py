"""An exact budget of host bytes."""

from __future__ import annotations

import pytest

from pagedvid.cache.host_memory import HostMemory
from pagedvid.errors import CapacityError, ConfigError, IntegrityError, ShapeError


def test_bytes_are_taken_and_given_back():
    memory = HostMemory("1KiB")
    memory.take(1000)
    memory.take(24)
    assert (memory.num_bytes, memory.used_bytes, memory.free_bytes) == (1024, 1024, 0)
    memory.give_back(1000)
    memory.take(0)
    assert (memory.used_bytes, memory.free_bytes) == (24, 1000)


def test_one_byte_too_many_is_refused_with_the_numbers_and_takes_nothing():
    memory = HostMemory(100)
    memory.take(40)
    with pytest.raises(CapacityError, match=r"needs 61 bytes \(61 B\) of host memory; 40 of 100 are used, 60 are left"):
        memory.take(61)
    assert memory.used_bytes == 40
    memory.take(60)


def test_no_host_memory_swaps_nothing():
    with pytest.raises(CapacityError, match="0 of 0 are used"):
        HostMemory(0).take(1)


def test_giving_back_more_than_was_taken_is_an_error():
    memory = HostMemory(100)
    memory.take(40)
    with pytest.raises(IntegrityError, match="41 bytes of host memory given back; only 40 were taken"):
        memory.give_back(41)
    assert memory.used_bytes == 40


@pytest.mark.parametrize("wrong", [-1, "x", None, True])
def test_wrong_sizes(wrong):
    with pytest.raises(ConfigError):
        HostMemory(wrong)
    for use in (HostMemory(100).take, HostMemory(100).give_back):
        with pytest.raises(ShapeError):
            use(wrong)
