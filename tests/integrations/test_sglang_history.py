"""What the SGLang plugin does without SGLang: a batch's history in pages against attention over kept chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid import CacheSpec, StreamCodecs, Window
from pagedvid.errors import ConfigError, ShapeError, StateError
from pagedvid.integrations.sglang_history import ChunkGrid, PagedLayer, PagedVideos, lingbot_rotary, window_of

GRID = ChunkGrid(videos=2, frames=2, rows=3, columns=5)
LAYERS, HEADS, HEAD_DIM, CHUNK = 2, 2, 24, 30
PAIRS_OF_AXES = (4, 4, 4)
"""Time, rows and columns, of the 12 pairs of channels."""


@pytest.fixture
def videos() -> PagedVideos:
    spec = CacheSpec(LAYERS, HEADS, HEAD_DIM, codecs=StreamCodecs("fp32"))
    return PagedVideos(spec, Window(sink_chunks=1, recent_chunks=2), CHUNK, GRID.videos, "cpu")


def angles(chunk: int) -> Tensor:
    """Of the tokens of a chunk, [L, D/2], written out."""
    places = [(2 * chunk + frame, row, column) for frame in range(2) for row in range(3) for column in range(5)]
    return torch.stack(
        [
            torch.cat([at * 10000.0 ** -(torch.arange(n) / n) for at, n in zip(place, PAIRS_OF_AXES, strict=True)])
            for place in places
        ]
    )


def tables(chunk: int) -> tuple[Tensor, Tensor]:
    return angles(chunk).cos(), angles(chunk).sin()


def rotated(x_BLHD: Tensor, chunk: int) -> Tensor:
    even, odd = x_BLHD[..., ::2], x_BLHD[..., 1::2]
    cos, sin = (table[:, None] for table in tables(chunk))
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def dense(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, torch.cat(keys, 1), torch.cat(values, 1)))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def draw(seed: int) -> Tensor:
    """q, k and v [3, B, L, H, D]."""
    return torch.randn(3, GRID.videos, CHUNK, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def forward(videos: PagedVideos, chunk: int, seed: int, *, commit: bool) -> list[Tensor]:
    with videos.forward(GRID, CHUNK * chunk, GRID.frames * chunk, commit=commit):
        return [videos.attend(layer, *draw(10 * seed + layer), tables(chunk)) for layer in range(LAYERS)]


def test_attention_over_sinks_recent_chunks_and_the_current_one(videos):
    stored: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(LAYERS)]
    for chunk in range(7):
        for commit in (False, True):
            seed = 2 * chunk + commit
            outs = forward(videos, chunk, seed, commit=commit)
            for layer, out in enumerate(outs):
                q, k, v = draw(10 * seed + layer)
                kept = [*stored[layer][:1], *stored[layer][1:][-2:], (rotated(k, chunk), v)]
                expected = dense(rotated(q, chunk), *map(list, zip(*kept, strict=True)))
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
                if commit:
                    stored[layer].append(kept[-1])
    videos.cache.check()


def test_the_pool_is_as_large_as_the_videos_peak(videos):
    for chunk in range(5):
        forward(videos, chunk, chunk, commit=True)
    stats = videos.cache.stats()
    assert stats.pages_peak == stats.pages_reserved == stats.num_pages
    videos.reset()
    assert videos.num_committed == 0 and videos.cache.stats().pages_used == 0


def test_windows_are_whole_chunks():
    assert window_of(45, 3, 3) == Window(sink_chunks=1, recent_chunks=13)
    for cache, sink in ((44, 3), (45, 2), (6, 3)):
        with pytest.raises(ConfigError, match=f"the window has {cache} tokens, {sink} of them sinks, and a chunk 3"):
            window_of(cache, sink, 3)


@pytest.mark.parametrize(
    ("grid", "first_token", "start_frame", "error", "message"),
    [
        (GRID._replace(videos=3), 0, 0, ShapeError, "3 videos of 30 tokens; the cache is for 2 with chunks of 30"),
        (GRID._replace(frames=1), 0, 0, ShapeError, "2 videos of 15 tokens"),
        (GRID, 30, 2, StateError, "begins at token 30 was given, but 0 chunks of 30 are stored"),
        (GRID, 0, 1, ConfigError, "the chunk at token 0 is rotated as frame 1 of 15 tokens"),
    ],
)
def test_forwards_that_do_not_continue_the_videos(videos, grid, first_token, start_frame, error, message):
    with pytest.raises(error, match=message), videos.forward(grid, first_token, start_frame, commit=False):
        pytest.fail("the forward began")


def test_layers_attend_inside_a_forward_and_where_they_are(videos):
    with pytest.raises(StateError, match="only inside a forward"):
        videos.attend(0, *draw(0), tables(0))
    wrong = pytest.raises(ConfigError, match="rotates the chunk at token 0 by other angles")
    with wrong, videos.forward(GRID, 0, 0, commit=True):
        videos.attend(0, *draw(0), tables(1))
    assert videos.num_committed == 0
    videos.cache.check()


def test_frames_keep_their_shape_until_a_reset(videos):
    tall = GRID._replace(rows=5, columns=3)
    forward(videos, 0, 0, commit=False)
    refused = pytest.raises(ShapeError, match=r"rows=5, columns=3.* began with .*rows=3, columns=5")
    with refused, videos.forward(tall, 0, 0, commit=False):
        pytest.fail("the forward began")
    videos.reset()
    with videos.forward(tall, 0, 0, commit=False):
        pass


def test_a_layer_has_no_dense_keys(videos):
    layer = PagedLayer(videos, 0, 120, 30, HEADS)
    for call in (layer.update_and_get_attention_kv, layer.can_direct_current_attention, layer.pin_current_chunk):
        with pytest.raises(ConfigError, match="asks for dense keys"):
            call(30)


def test_the_rotary_embedding_is_what_is_written_out():
    cos, sin = lingbot_rotary(HEAD_DIM, GRID).tables(CHUNK, CHUNK)
    torch.testing.assert_close((cos, sin), tables(1), rtol=0, atol=1e-5)
