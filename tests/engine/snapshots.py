"""Snapshots of videos that never ran: random, but as a cache and an engine could have made them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_image import BranchImage, ChunkImage, StreamImage
from pagedvid.cache.window import Commit, Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.engine.checkpoint_file import Origin
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.requests import EarlierPrompt, LaterPrompt, VideoRequest
from pagedvid.engine.snapshot import JobSnapshot

LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, TOKENS_PER_FRAME, FRAMES_PER_CHUNK, CHANNELS = 2, 4, 2, 8, 7, 3, 6
CHUNK_TOKENS = TOKENS_PER_FRAME * FRAMES_PER_CHUNK
BY_HEAD = ChunkCodecs.read("int2", [(0, 0, "int4/int2")], [(0, 1, 1, "int8"), (1, 0, 0, None)])
CODECS = (
    StreamCodecs("int2"),
    StreamCodecs("bf16"),
    StreamCodecs("fp32", sink="int4", layers={1: "int8/int4"}),
    StreamCodecs("int4/int2", sink="int8", newest="bf16", layers={"0-1": "int2"}),
    StreamCodecs(BY_HEAD, sink=ChunkCodecs.read("int4")),
    StreamCodecs("int2", look_back=((0, 0, 0, 1, False), (1, 0, 1, 2, True))),
)


def origin_with(codecs: StreamCodecs, branches: tuple[str, ...] = ("cond",), **cache: Any) -> Origin:
    geometry = ModelGeometry(LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, TOKENS_PER_FRAME, FRAMES_PER_CHUNK, branches)
    spec = CacheSpec(LAYERS, KV_HEADS, HEAD_DIM, QUERY_HEADS, codecs=codecs, **cache)
    files = {"weights": "0123456789abcdef", "vae": None}
    return Origin("toy", geometry, spec, Window(1, 2), 4, {"dtype": "float32", "height": None}, files)


counts = st.integers(0, 2**40)


@st.composite
def random_tensors(draw: st.DrawFn, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Any bits, NaN among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), generator=generator, dtype=torch.uint8)
    return raw.view(dtype)


@st.composite
def chunk_images(draw: st.DrawFn, spec: CacheSpec, index: int, codecs: ChunkCodecs, first_token: int) -> ChunkImage:
    num_tokens = draw(st.integers(1, CHUNK_TOKENS))
    cut = draw(st.integers(1, num_tokens))
    runs = (cut, num_tokens - cut) if cut < num_tokens else (cut,)
    shape, heads = spec.shape, (LAYERS, KV_HEADS)
    num_tables = 2 * shape.num_tables
    digests = tuple(draw(st.binary(min_size=16, max_size=16)) for _ in range(num_tables))
    return ChunkImage(
        index=index,
        first_token=first_token,
        position=draw(counts),
        num_tokens=num_tokens,
        codecs=codecs,
        records_PB=draw(random_tensors(shape.chunk_pages(num_tokens, codecs), shape.page_bytes, dtype=torch.uint8)),
        alpha_LH=draw(random_tensors(*heads)) if shape.keeps_alpha(codecs) else None,
        variance_LHD=draw(random_tensors(*heads, HEAD_DIM, dtype=torch.bfloat16))
        if shape.keeps_variance(codecs)
        else None,
        runs=draw(st.sampled_from([{}, {1: runs}, {0: runs, 1: (num_tokens,)}])),
        digests=draw(st.sampled_from([None, digests])),
    )


@st.composite
def branch_images(draw: st.DrawFn, spec: CacheSpec, codecs: StreamCodecs, window: Window) -> BranchImage:
    num_committed = draw(st.integers(0, 6))
    everything = set(range(num_committed))
    live = set(window.live(num_committed))
    dropped = draw(st.sets(st.sampled_from(sorted(live)))) if live else set()
    pinned = draw(st.sets(st.sampled_from(sorted(everything - dropped)))) if everything - dropped else set()
    chunks: list[ChunkImage] = []
    for index in sorted(live - dropped | pinned):
        stored = codecs.stored(index, num_committed - 1 - index, window)
        chunks.append(draw(chunk_images(spec, index, stored, index * CHUNK_TOKENS)))
    return BranchImage(
        tuple(chunks), frozenset(pinned), frozenset(dropped), num_committed, num_committed * CHUNK_TOKENS
    )


@st.composite
def stream_images(draw: st.DrawFn, origin: Origin) -> StreamImage:
    codecs = origin.cache.codecs
    window = Window(draw(st.integers(0, 2)), draw(st.integers(1, 3)), draw(st.sampled_from(["absolute", "window"])))
    commits = st.builds(Commit, st.integers(1, CHUNK_TOKENS), st.lists(st.integers(0, 9), max_size=3).map(tuple))
    return StreamImage(
        shape=origin.cache.shape,
        correction_unit=origin.cache.correction_unit,
        window=window,
        codecs=codecs,
        chunk_tokens=CHUNK_TOKENS,
        max_chunks=draw(st.none() | counts),
        commits=draw(st.none() | st.lists(commits, max_size=4).map(tuple)),
        branches={name: draw(branch_images(origin.cache, codecs, window)) for name in origin.geometry.branches},
    )


any_text = st.text(st.characters(), max_size=20)  # half surrogates and NUL among them
names = st.text(max_size=20)
tensor_dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
states = st.dictionaries(
    names,
    st.sampled_from([torch.float32, torch.uint8, torch.int64]).flatmap(lambda d: random_tensors(2, 3, dtype=d)),
    max_size=3,
)
inputs = st.dictionaries(
    any_text,
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | any_text
    | st.builds(Path, st.sampled_from(["a.json", "/b/c d", "é"])) | states,
    max_size=3,
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> VideoRequest:
    num_frames = draw(st.integers(1, 2**40))
    frames = st.sets(st.integers(1, num_frames - 1), max_size=3) if num_frames > 1 else st.just(set())
    later = [LaterPrompt(frame, draw(any_text), draw(st.booleans())) for frame in sorted(draw(frames))]
    ends = sorted(draw(st.sets(st.integers(1, 2**40), max_size=3)))
    return VideoRequest(
        id=draw(any_text),
        prompt=draw(any_text),
        num_frames=num_frames,
        seed=draw(st.integers(1 - 10**24, 10**24)),
        inputs=draw(inputs),
        priority=draw(st.integers(-9, 9)),
        live_frames_per_second=draw(st.none() | st.integers(1, 60) | st.floats(0.1, 240)),
        keep=draw(st.booleans()),
        later_prompts=tuple(later),
        earlier_prompts=tuple(EarlierPrompt(frame, draw(any_text)) for frame in ends),
    )


@st.composite
def snapshots(draw: st.DrawFn, origin: Origin) -> JobSnapshot:
    latents = tensor_dtypes.flatmap(lambda dtype: random_tensors(CHUNK_TOKENS, CHANNELS, dtype=dtype))
    predictions = tensor_dtypes.flatmap(lambda dtype: random_tensors(5, CHANNELS, dtype=dtype))
    by_role = st.dictionaries(names, predictions, min_size=1, max_size=2)
    chunks = st.integers(0, 10**6)
    return JobSnapshot(
        request=draw(requests()),
        num_rounds_done=draw(counts),
        num_frames_out=draw(counts),
        num_output_frames=draw(counts),
        latents=draw(st.dictionaries(chunks, latents, max_size=2)),
        clean=draw(st.dictionaries(chunks, predictions, max_size=2)),
        held=draw(st.dictionaries(chunks, by_role, max_size=2)),
        decoder=draw(states),
        peak_bytes=(draw(counts), draw(counts)),
        image=draw(st.none() | stream_images(origin)),
    )


def assert_same(found: Any, expected: Any, what: str = "the snapshot") -> None:
    """Equal in every field, type and bit."""
    assert type(found) is type(expected), what
    if isinstance(expected, Tensor):
        assert (found.dtype, found.shape, found.device) == (expected.dtype, expected.shape, expected.device), what
        assert torch.equal(*(x.contiguous().view(-1).view(torch.uint8) for x in (found, expected))), what
    elif isinstance(expected, (StreamCodecs, ChunkCodecs)):
        assert found == expected, what
    elif is_dataclass(expected):
        for field in fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name), f"{what}.{field.name}")
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), what
        for key in expected:
            assert_same(found[key], expected[key], f"{what}[{key!r}]")
    elif isinstance(expected, (tuple, list)):
        assert len(found) == len(expected), what
        for place, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{what}[{place}]")
    else:
        assert found == expected, what
