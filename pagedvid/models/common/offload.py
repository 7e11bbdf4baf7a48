"""A network's blocks in host memory: each comes to the device while the one before it runs.

    slots on the device    | block 3 runs | block 4 arrives |
    host memory            | block 0 | block 1 | block 2 | block 3 | ...

The device holds two blocks, whatever their number. On CUDA, host memory is pinned and copies have a stream of their
own; on a CPU the copies are plain, so that the same order of work can be tested there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pagedvid.errors import StateError

BLOCKS_ON_DEVICE = 2
"""The one that runs, and the one that comes."""
ALIGNMENT_BYTES = 256
"""Of every tensor in a block's bytes, as PyTorch's own allocator aligns on a GPU."""


def offload(network: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> OffloadedBlocks:
    """Moves a network to `device`, except its `blocks`, which run one after the other: these move to host memory, and
    are on `device` while they run. Inference only: gradients are not carried back."""
    in_blocks = {id(tensor) for block in blocks for tensor in _tensors(block)}
    for tensor in _tensors(network):
        if id(tensor) not in in_blocks:
            tensor.data = tensor.data.to(device)
    held = OffloadedBlocks([_tensors(block) for block in blocks], device)
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(partial(held.enter, number))
        block.register_forward_hook(partial(held.leave, number), always_call=True)
    return held


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@dataclass(frozen=True)
class _Place:
    """Where a tensor is in the bytes of its block."""

    first_byte: int
    shape: torch.Size
    dtype: torch.dtype

    def of(self, block_bytes: Tensor) -> Tensor:
        """The tensor in bytes of a block, uint8."""
        num_bytes = self.shape.numel() * self.dtype.itemsize
        return block_bytes[self.first_byte : self.first_byte + num_bytes].view(self.dtype).view(self.shape)


class _HostBlock:
    """The tensors of one block in one piece of host memory."""

    def __init__(self, tensors: Sequence[Tensor], pinned: bool) -> None:
        self.tensors = tensors
        self._places, num_bytes = [], 0
        for tensor in tensors:
            self._places.append(_Place(num_bytes, tensor.shape, tensor.dtype))
            own_bytes = tensor.numel() * tensor.element_size()
            num_bytes += -(-own_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self.bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        for tensor, place in zip(tensors, self._places, strict=True):
            place.of(self.bytes).copy_(tensor.detach())
        self.point_at(self.bytes)

    def point_at(self, block_bytes: Tensor) -> None:
        """Lets the block's tensors be those in `block_bytes`, uint8, on any device."""
        for tensor, place in zip(self.tensors, self._places, strict=True):
            tensor.data = place.of(block_bytes)


class _Copies(Protocol):
    """How bytes reach a slot, and in which order with the device's work."""

    def start(self, slot: Tensor, block_bytes: Tensor) -> None:
        """Begins to fill a slot, once what was computed with its former content is done."""
        ...

    def wait(self, slot: Tensor) -> None:
        """Work that is given to the device from now on finds the slot filled."""
        ...

    def done(self, slot: Tensor) -> None:
        """Work that was given to the device so far is the last that uses the slot's content."""
        ...


class _PlainCopies:
    """On a CPU everything is done when its call returns."""

    def start(self, slot: Tensor, block_bytes: Tensor) -> None:
        slot[: len(block_bytes)].copy_(block_bytes)

    def wait(self, slot: Tensor) -> None:
        pass

    def done(self, slot: Tensor) -> None:
        pass


class _StreamCopies:
    """On CUDA: a stream for copies, and for each slot an event when it is filled and one when it is free again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # former users of the slots' memory
        self._filled: dict[int, Any] = {}
        self._free: dict[int, Any] = {}

    def start(self, slot: Tensor, block_bytes: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            if (free := self._free.get(slot.data_ptr())) is not None:
                self._stream.wait_event(free)
            slot[: len(block_bytes)].copy_(block_bytes, non_blocking=True)
            self._filled[slot.data_ptr()] = self._stream.record_event()

    def wait(self, slot: Tensor) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._filled[slot.data_ptr()])

    def done(self, slot: Tensor) -> None:
        self._free[slot.data_ptr()] = torch.cuda.current_stream(self._device).record_event()


class OffloadedBlocks:
    """The tensors of all blocks, and the two slots on the device.

    Pickled with its network, it takes host memory and slots anew where it is put together again.
    """

    def __init__(self, blocks: Sequence[Sequence[Tensor]], device: torch.device) -> None:
        """Called by `offload`, which lets the blocks call `enter` and `leave`."""
        self._device, is_cuda = device, device.type == "cuda"
        self._blocks = [_HostBlock(block, is_cuda) for block in blocks]
        largest = max(len(block.bytes) for block in self._blocks)
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(BLOCKS_ON_DEVICE)]
        self._copies: _Copies = _StreamCopies(device) if is_cuda else _PlainCopies()
        self._held: list[int | None] = [None, None]
        """The block in each slot."""
        self._running: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return OffloadedBlocks, ([block.tensors for block in self._blocks], self._device)

    @property
    def host_bytes(self) -> int:
        """Of all blocks."""
        return sum(len(block.bytes) for block in self._blocks)

    @property
    def device_bytes(self) -> int:
        """Of both slots."""
        return sum(len(slot) for slot in self._slots)

    def enter(self, number: int, *_: object) -> None:
        """Before a block runs: it is in a slot, and the next one begins to come into the other. Raises StateError."""
        if self._running is not None:
            raise StateError(
                f"block {number} of an offloaded network was called while block {self._running} runs; blocks run one "
                "after the other: let one thread call the network"
            )
        own = self._held.index(number) if number in self._held else self._fetch(number, into=0)
        slot = self._slots[own]
        self._copies.wait(slot)
        self._blocks[number].point_at(slot)
        self._running = number
        following = (number + 1) % len(self._blocks)
        if following not in self._held:
            self._fetch(following, into=1 - own)

    def leave(self, number: int, *_: object) -> None:
        """After a block ran, or failed: its tensors are those in host memory again."""
        if self._running != number:
            return
        self._copies.done(self._slots[self._held.index(number)])
        self._blocks[number].point_at(self._blocks[number].bytes)
        self._running = None

    def _fetch(self, number: int, into: int) -> int:
        self._copies.start(self._slots[into], self._blocks[number].bytes)
        self._held[into] = number
        return into
