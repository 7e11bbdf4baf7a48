"""The whole list of kernels and configurations."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.attention import merge_launches, rotate_launches
from kernels.channel import channel_launches, channel_step_size_launches
from kernels.compile import Launch
from kernels.klt import klt_launches
from kernels.token import token_launches


def launches() -> Iterator[Launch]:
    """All configurations; the first one of each kernel is its main one."""
    yield from channel_launches()
    yield from merge_launches()
    yield from rotate_launches()
    yield from klt_launches()
    yield from token_launches()
    yield from channel_step_size_launches()
