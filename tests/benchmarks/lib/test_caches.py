"""Caches by name: published quantizers run in the package's own cache, factors multiply b."""

from __future__ import annotations

import pytest
import torch

from attention import line_rotary
from lib.caches import Caches, Case
from pagedvid.cache.window import Window
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.errors import ConfigError, NonFiniteError
from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.demo.weights import save_weights
from peers.codec import PeerBook, PeerCodec

GEOMETRY = ModelGeometry(2, 2, 2, 64, tokens_per_frame=16, frames_per_chunk=8)
WINDOW = Window(1, 2)


@pytest.fixture
def caches(tmp_path):
    save_weights(Transformer(TransformerConfig(width=128, num_heads=2, num_layers=2)), tmp_path, {})
    return Caches(GEOMETRY, WINDOW, tmp_path)


def last_output(cache, num_chunks: int = 3):
    """Output of a denoise step over a history of fixed chunks."""
    rope, size = line_rotary(64), GEOMETRY.chunk_tokens
    stream = cache.open(WINDOW, size)
    tensors = torch.randn(num_chunks + 1, 3, size, 2, 64, generator=torch.Generator().manual_seed(0))
    for q, k, v in tensors[:-1]:
        with cache.commit([stream]) as step:
            for layer in range(GEOMETRY.num_layers):
                step.attend(layer, q, k, v, rope)
    with cache.denoise([stream]) as step:
        return step.attend(1, *tensors[-1], rope)


@pytest.mark.parametrize("name", ["RTN2 g64", "QuaRot2 g64", "KIVI2 pre", "TurboQuant2", "QVG tern"])
def test_peers_are_read_as_they_reconstruct(name, caches) -> None:
    peer = caches.peers()[name]
    x = torch.randn(2, 128, 64, generator=torch.Generator().manual_seed(1))
    for kind in ("keys", "values"):
        page = PageFormat(64)
        codec = PeerCodec(peer, kind, page)
        records = codec.encode(x)
        assert records.dtype == torch.uint8
        assert records.shape == (2, read_codec("sim").num_pages(page, 128), page.num_bytes)
        stored = peer.quantize(kind)(x)
        out = torch.empty(2, read_codec("sim").padded_tokens(page, 128), 64)
        torch.testing.assert_close(codec.decode(records, 128, out), stored.values_HnD)
        square = codec.mean_square_step_sizes(records, 128)
        assert (square is None) == (stored.square_step_size_HnD is None) == (not peer.uniform)
        if square is not None:
            torch.testing.assert_close(square, stored.square_step_size_HnD.mean(1))
    off, exact = last_output(caches.new(Case(name), 1)), last_output(caches.new(Case("fp32"), 1))
    corrected = last_output(caches.new(Case(name, "variance"), 1))
    assert 0.01 < (off - exact).norm() / exact.norm() < 1.5  # QVG finds no clusters in random numbers
    assert not torch.equal(corrected, off)


def test_rtn_as_a_peer_is_the_token_codec(caches) -> None:
    """The same quantizer twice: with its reconstruction in fp32 pages, and with its codes in pages."""
    for correction in ("off", "formula", "variance"):
        outs = [last_output(caches.new(Case(name, correction), 1)) for name in ("RTN2 g64", "token2-g64")]
        assert (outs[0] - outs[1]).norm() / outs[1].norm() < 0.05  # zero points are rounded differently
    off = last_output(caches.new(Case("RTN2 g64"), 1))
    assert (off - outs[0]).norm() / off.norm() > 0.005


def test_factors_multiply_b(caches) -> None:
    by_factor = {factor: last_output(caches.new(Case("int2", "formula", factor), 1)) for factor in (0.0, 0.5, 1.0)}
    torch.testing.assert_close(by_factor[0.0], last_output(caches.new(Case("int2"), 1)))
    torch.testing.assert_close(by_factor[1.0], last_output(caches.new(Case("int2", "formula"), 1)))
    assert not torch.equal(by_factor[0.5], by_factor[1.0])


def test_bits_are_those_of_the_peer_and_of_the_pages(caches) -> None:
    expected = {
        ("int2", "off"): 2.25,
        ("token2-g64", "off"): 2.5,
        ("RTN2 g64", "off"): 2.375,
        ("KIVI2 pre", "off"): 2.5,
    }
    expected["int2", "variance"] = 2.25 + 16 * 64 / (2 * 128 * 64)
    expected["RTN2 g64", "variance"] = 2.375 + 16 * 64 / (2 * 128 * 64)
    expected["int4/int2", "off"] = (4.5 + 2.25) / 2
    for (storage, correction), bits in expected.items():
        cache = caches.new(Case(storage, correction), 1)
        last_output(cache)
        assert caches.bits(cache) == pytest.approx(bits)


def test_what_a_peer_cannot_store_is_refused(caches) -> None:
    peer = caches.peers()["RTN2 g64"]
    with pytest.raises(NonFiniteError, match="RTN2 g64"):
        PeerCodec(peer, "keys", PageFormat(64)).encode(torch.full((1, 128, 64), torch.nan))
    with pytest.raises(ConfigError, match="leave no room for step sizes"):
        PeerCodec(peer, "keys", PageFormat(64)).encode(torch.zeros(1, 9, 64))
    with pytest.raises(ConfigError, match="only 'sim' is here"):
        PeerBook(peer, PageFormat(64), 2).codec(read_codec("int2"), "keys", 0, (0, 1))


def test_unknown_storages_are_refused(caches) -> None:
    with pytest.raises(ConfigError, match="int3"):
        caches.new(Case("int3"), 1)
