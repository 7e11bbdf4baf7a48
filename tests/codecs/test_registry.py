"""Codecs from outside the package: registered by a call or an entry point, with and without kernels of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pagedvid import CacheSpec, GridRotary, PagedKVCache, StreamCodecs, Window
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.workspace import commit_bytes
from pagedvid.codecs import registry
from pagedvid.codecs.base import CodecOperations, make_codec
from pagedvid.codecs.registry import CodecFamily, read_codec, register_codecs
from pagedvid.codecs.spec import PageFormat
from pagedvid.config.sections import CacheConfig
from pagedvid.errors import ConfigError
from pagedvid.rotary.grid_rotary import theta_frequencies
from tests.attention.triton_scenes import with_kernels
from tests.codecs.outside.family import FAMILY, HalfSpec
from tests.codecs.outside.kernels import LAUNCHES, HalfKernels


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Removes what a test registers."""
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    yield
    read_codec.cache_clear()
    registry._installed_families.cache_clear()


def outputs(codec: str, by_kernels: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a stream's second chunk, and the bytes of its first, from a whole cache."""
    rope = GridRotary.of_sequence(theta_frequencies(32).float(), "half")
    generator = torch.Generator().manual_seed(0)
    cache = PagedKVCache(CacheSpec(1, 2, 32, codecs=StreamCodecs(codec)), "2MiB")
    if by_kernels:
        with_kernels(cache)
    stream = cache.open(Window(1, 2), 50)
    for commit in (True, False):
        q, k, v = (torch.randn(50, 2, 32, generator=generator) for _ in range(3))
        with cache.commit([stream]) if commit else cache.denoise([stream]) as step:
            out = step.attend(0, q, k, v, rope)
    (chunk,) = stream.chunks()
    return out, cache.pool.read(chunk.table.ids)


def test_a_codec_of_another_package_is_unknown_until_it_is_registered():
    with pytest.raises(ConfigError, match="unknown codec 'half'; allowed are fp32, bf16"):
        read_codec("half")
    register_codecs(FAMILY)
    assert read_codec("half") == HalfSpec("half", 16, is_quantized=False)
    assert CacheConfig(codec="half/int4").codec == "half/int4"
    with pytest.raises(ConfigError, match=r"unknown codec 'quarter'; allowed are .*, half, half-k"):
        read_codec("quarter")


@pytest.mark.parametrize("codec", ["half", "half-k", "int4/half"])
def test_it_stores_and_reads_like_any_other(codec: str):
    register_codecs(FAMILY)
    out, _ = outputs(codec)
    exact, _ = outputs("fp32")
    torch.testing.assert_close(out, exact, rtol=0, atol=0.2 if "int4" in codec else 2e-3)
    assert not torch.equal(out, exact)


def test_its_own_kernel_is_used_on_a_gpu_and_writes_the_same_bytes():
    register_codecs(FAMILY)
    LAUNCHES.clear()
    by_kernel, kernel_bytes = outputs("half-k", by_kernels=True)
    assert {"read", "write"} <= set(LAUNCHES)
    LAUNCHES.clear()
    by_operations, operation_bytes = outputs("half", by_kernels=True)
    assert not LAUNCHES
    torch.testing.assert_close(by_kernel, by_operations, rtol=0, atol=1e-5)
    on_cpu, cpu_bytes = outputs("half-k")
    torch.testing.assert_close(by_kernel, on_cpu, rtol=0, atol=1e-5)
    used = 18 * 32 * 2
    assert torch.equal(kernel_bytes[..., :used], cpu_bytes[..., :used])
    assert torch.equal(operation_bytes[..., :used], cpu_bytes[..., :used])


def test_kernels_are_the_codecs_own_or_its_operations():
    register_codecs(FAMILY)
    page, cpu = PageFormat(32), torch.device("cpu")
    assert isinstance(make_codec(read_codec("half"), page).kernels(cpu), CodecOperations)
    assert isinstance(make_codec(read_codec("half-k"), page).kernels(cpu), HalfKernels)


def test_its_memory_is_counted_as_its_spec_says():
    register_codecs(FAMILY)
    card = find_card("self-forcing")
    size = card.stream_size(card.resolution, card.window)
    keys_bytes, records_bytes = 4 * 4680 * 12 * 128, 260 * 12 * 36 * 128  # float32; pages of 18 tokens
    # Keys and values as given, and twice the records of either, the `encode_bytes` of the spec.
    expected = 2 * keys_bytes + 2 * records_bytes
    assert commit_bytes(size, StreamCodecs("half"), measured=False, has_rope=True) == expected


def test_an_entry_point_makes_a_codec_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, "half = tests.codecs.outside.family:FAMILY")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert isinstance(read_codec("half-k"), HalfSpec)
    out, _ = outputs("half")
    torch.testing.assert_close(out, outputs("fp32")[0], rtol=0, atol=2e-3)


def test_an_entry_point_that_names_no_family_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, "half = tests.codecs.outside.family:read_half")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with pytest.raises(ConfigError, match=r"the entry point half = .*:read_half of .* it must name a .*CodecFamily"):
        read_codec("half")
    assert read_codec("int2").name == "int2"  # what is built in needs no entry point


def test_built_in_names_take_precedence():
    register_codecs(CodecFamily("int2, again", lambda name: HalfSpec(name, 16) if name == "int2" else None))
    assert not isinstance(read_codec("int2"), HalfSpec)


def install(folder: Path, entry_point: str) -> None:
    """Makes a folder look like an installed distribution with this entry point."""
    info = folder / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pagedvid.codecs]\n{entry_point}\n")
