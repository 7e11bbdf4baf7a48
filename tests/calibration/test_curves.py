"""Errors of single choices, against attention in float64 over the changed keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pagedvid.calibration.curves import CachedChunk, Reading, key_errors, value_errors, window_errors
from pagedvid.codecs.base import Codec, make_codec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.rotary.tables import rotate

HEADS, GROUP, QUERIES, HEAD_DIM = 2, 3, 5, 16
NAMES = ("int2", "int4", "int8")
LENGTHS = {"equal": (12, 12, 12, 12), "ragged": (12, 7, 12, 3)}


@dataclass(frozen=True)
class Scene:
    q_GHQD: Tensor
    own_k: Tensor
    own_v: Tensor
    chunks: list[CachedChunk]

    def output(self, keys: list[Tensor], values: list[Tensor], seen: list[int]) -> Tensor:
        """[G, H, Q, D] in float64; keys before rotary embedding."""
        rotated = [rotate(keys[i], *self.chunks[i].angles).double() for i in seen]
        k = torch.cat([*rotated, self.own_k.double()], dim=1)
        v = torch.cat([*(values[i].double() for i in seen), self.own_v.double()], dim=1)
        return (self.q_GHQD.double() @ k.mT * HEAD_DIM**-0.5).softmax(-1) @ v

    def error(self, keys: list[Tensor], values: list[Tensor], seen: list[int]) -> Tensor:
        exact = self.output(self.keys, self.values, list(range(len(self.chunks))))
        return (self.output(keys, values, seen) - exact).square().sum((0, 3)).mean(-1).float()

    @property
    def keys(self) -> list[Tensor]:
        return [chunk.k_HnD for chunk in self.chunks]

    @property
    def values(self) -> list[Tensor]:
        return [chunk.v_HnD for chunk in self.chunks]

    @property
    def reading(self) -> Reading:
        return Reading.of(self.q_GHQD, self.own_k, self.own_v, self.chunks)


def scene(lengths: tuple[int, ...]) -> Scene:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    chunks = []
    for number, length in enumerate(lengths):
        angles = (number * 12 + torch.arange(length))[:, None] * 10.0 ** -torch.linspace(0, 2, HEAD_DIM // 2)
        age = len(lengths) - 1 - number
        tables = (angles.cos(), angles.sin())
        chunk = CachedChunk(draw(HEADS, length, HEAD_DIM), draw(HEADS, length, HEAD_DIM), tables, age, number == 0)
        chunks.append(chunk)
    return Scene(draw(GROUP, HEADS, QUERIES, HEAD_DIM), draw(HEADS, 9, HEAD_DIM), draw(HEADS, 9, HEAD_DIM), chunks)


def codecs() -> list[Codec]:
    return [make_codec(read_codec(name), PageFormat(HEAD_DIM)) for name in NAMES]


def stored(codec: Codec, x_HnD: Tensor) -> Tensor:
    room = torch.empty(HEADS, codec.spec.padded_tokens(codec.page, x_HnD.shape[1]), HEAD_DIM)
    return codec.decode(codec.encode(x_HnD), x_HnD.shape[1], room)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_keys_and_values_are_changed_alone(lengths):
    given = scene(LENGTHS[lengths])
    everything = list(range(4))
    for number, codec in enumerate(codecs()):
        keys, values = ([stored(codec, x) for x in kind] for kind in (given.keys, given.values))
        found = key_errors(given.reading, codecs(), keeps_mass=False)[:, number]
        torch.testing.assert_close(found, given.error(keys, given.values, everything), rtol=1e-3, atol=1e-9)
        found = value_errors(given.reading, codecs())[:, number]
        torch.testing.assert_close(found, given.error(given.keys, values, everything), rtol=1e-3, atol=1e-9)


def test_a_corrected_codec_keeps_the_mass_of_every_chunk():
    """Keys that are all scaled down move mass; with the mass kept, a chunk of equal values does not notice."""
    given = scene(LENGTHS["equal"])
    flat = [CachedChunk(c.k_HnD, torch.ones_like(c.v_HnD), c.angles, c.age, c.is_sink) for c in given.chunks]
    reading = Reading.of(given.q_GHQD, given.own_k, given.own_v, flat)
    moved, kept = (key_errors(reading, codecs(), keeps_mass=keeps) for keeps in (False, True))
    assert float(kept.abs().max()) < 1e-9 < 1e-4 < float(moved[:, 0].min())


def test_windows_leave_out_the_oldest_chunks():
    given = scene(LENGTHS["ragged"])
    found, leaves_out = window_errors(given.reading, recent_chunks=4)
    for recent in range(1, 5):
        for sinks in (False, True):
            seen = [i for i, c in enumerate(given.chunks) if c.age < recent or (sinks and c.is_sink)]
            expected = given.error(given.keys, given.values, seen)
            torch.testing.assert_close(found[:, int(sinks), recent - 1], expected, rtol=1e-3, atol=1e-9)
            assert bool(leaves_out[int(sinks), recent - 1]) == (len(seen) < 4)
    assert torch.equal(found[:, :, 3], torch.zeros(HEADS, 2))
