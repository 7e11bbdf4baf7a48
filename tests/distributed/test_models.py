"""Models of the package on 2 and on 3 gloo ranks: the same frames as on one, and checkpoints that go between them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.checkpoint_file import Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, EngineOutput, VideoRequest
from pagedvid.models.demo.weights import load_demo
from pagedvid.models.registry import model_tables
from pagedvid.paged_kv_cache import PagedKVCache
from tests.distributed.ranks import on_ranks
from tests.engine.snapshots import assert_same
from tests.models.magi1 import recordings as magi
from tests.models.wan.base import tiny
from tests.models.wan.causal.test_rollout import tiny_model as tiny_wan
from tests.models.wan.skyreels.test_rollout import tiny_model as tiny_skyreels
from tests.models.worldplay import rollout as worldplay

Group = dist.ProcessGroup | None
Made = dict[str, Any]
WAN = {
    "wan-causal": ("WanTransformer3DModel", tiny_wan),
    "skyreels": ("SkyReelsV2Transformer3DModel", tiny_skyreels),
    "skyreels in flight": ("SkyReelsV2Transformer3DModel", partial(tiny_skyreels, ar_step=1)),
}
TOLERANCE = 1e-3
"""Latents have a standard deviation of about 1; outputs of heads are the same but for rounding."""


def magi_video(name: str, group: Group = None) -> Made:
    rollout = magi.ROLLOUTS[name]
    engine = magi.engine_of(magi.recorded_model(rollout), rollout.num_steps, shard=group)
    engine.submit(rollout.request())
    return run(engine)


def worldplay_video(variant: str, group: Group = None) -> Made:
    engine = worldplay.make_engine(worldplay.make_model(variant), shard=group)
    engine.submit(worldplay.request(variant))
    return run(engine)


def wan_videos(name: str, codec: str, group: Group = None) -> Made:
    """Six heads; two videos in one batch."""
    kind, model = WAN[name]
    branches = ("cond",) if name == "wan-causal" else ("cond", "uncond")
    engine = tiny.engine_of(model(tiny.tiny_transformer(kind, num_attention_heads=6)), codec, shard=group)
    for number, num_frames in enumerate((12, 7)):
        inputs = {"embeddings": tiny.embeddings(number, branches)}
        engine.submit(VideoRequest(str(number), "", num_frames, number, inputs))
    return run(engine)


def run(engine: Engine) -> Made:
    """(frames of all videos, most pages reserved)."""
    outputs, reserved = [], 0
    while engine.has_work:
        outputs += engine.step()
        reserved = max(reserved, engine.cache.reserved_pages)
    return {"frames": frames_of(outputs), "pages": reserved}


def frames_of(outputs: list[EngineOutput]) -> np.ndarray:
    for output in outputs:
        assert isinstance(output, ChunkOutput), output.error
    return np.concatenate([output.frames for output in sorted(outputs, key=lambda each: each.request_id)])


# ---------------------------------------------------------------------- the demo model


def demo_engine(codec: str, group: Group = None, memory: int | str = "8MiB", **settings: Any) -> Engine:
    model = load_demo()
    size = model.geometry
    spec = CacheSpec(
        size.num_layers,
        size.num_kv_heads,
        size.head_dim,
        codecs=StreamCodecs(codec),
        tokens_per_frame=size.tokens_per_frame,
        frames_per_block=size.frames_per_chunk,
    )
    cache = PagedKVCache(spec, memory, tables=model_tables("demo", None), shard=group)
    return Engine(model, cache, Window(1, 3, positions="window"), num_denoise_steps=2, **settings)


def demo_requests() -> list[VideoRequest]:
    return [VideoRequest("a", "a red circle moving left", 40, 1), VideoRequest("b", "a blue square", 24, 2)]


def demo_videos(codec: str, group: Group = None) -> Made:
    engine = demo_engine(codec, group)
    for request in demo_requests():
        engine.submit(request)
    return run(engine)


def origin_of(engine: Engine) -> Origin:
    return Origin("demo", engine.model.geometry, engine.cache.whole_spec, engine.window)


def demo_half(folder: Path, group: Group = None) -> list[EngineOutput]:
    """A video up to some step; its checkpoint is in a file of the rank."""
    engine = demo_engine("klt2", group)
    engine.submit(demo_requests()[0])
    outputs = [output for _ in range(8) for output in engine.step()]
    rank = "alone" if group is None else str(dist.get_rank(group))
    save_checkpoint(folder / rank, engine.checkpoint("a"), origin_of(engine))
    return outputs


def demo_rest(path: Path, group: Group = None) -> list[EngineOutput]:
    """The video from the file on, swapped out and in on the way."""
    engine = demo_engine("klt2", group, host_memory="8MiB")
    engine.restore(load_checkpoint(path, origin_of(engine)))
    outputs = [*engine.step()]
    engine._residency._swap_out(next(iter(engine._roster.jobs.values())))
    assert engine.host_memory.used_bytes > 0
    return [*outputs, *engine.run()]


def whole_demo(half: list[EngineOutput], rest: list[EngineOutput]) -> np.ndarray:
    return frames_of([*half, *rest])


# ---------------------------------------------------------------------- tests

VIDEOS = {
    2: {
        "magi w4_cfg3": partial(magi_video, "w4_cfg3"),
        "worldplay hy8b": partial(worldplay_video, "hy8b"),
        "worldplay wan5b": partial(worldplay_video, "wan5b"),
        "wan-causal": partial(wan_videos, "wan-causal", "fp32"),
        "skyreels in flight": partial(wan_videos, "skyreels in flight", "fp32"),
    },
    3: {
        "demo klt2": partial(demo_videos, "klt2"),
        "skyreels": partial(wan_videos, "skyreels", "int4"),
    },
}


@pytest.mark.parametrize("num_ranks", VIDEOS)
def test_every_rank_makes_the_frames_of_one_rank_with_its_share_of_the_pages(num_ranks):
    made = on_ranks(num_ranks, VIDEOS[num_ranks])
    for name, make in VIDEOS[num_ranks].items():
        alone = make()
        for of_rank in made[name]:
            assert num_ranks * of_rank["pages"] == alone["pages"], name
            difference = np.abs(of_rank["frames"].astype(np.float32) - alone["frames"].astype(np.float32)).max()
            assert difference <= (1 if name.startswith("demo") else TOLERANCE), name


def test_a_checkpoint_goes_from_three_ranks_to_one_and_back(tmp_path):
    """Every rank has the whole one."""
    halves = on_ranks(3, {"half": partial(demo_half, tmp_path)})["half"]
    half, expected = demo_half(tmp_path), demo_videos_alone()
    first, *others = (load_checkpoint(tmp_path / name, origin_of(demo_engine("klt2"))) for name in "012")
    for other in others:
        assert_same(other, first)
    rests = on_ranks(3, {name: partial(demo_rest, tmp_path / name) for name in ("alone", "0")})
    for first, second in (
        (half, rests["alone"][2]),
        (halves[1], rests["0"][1]),
        (halves[0], demo_rest(tmp_path / "0")),
    ):
        assert np.abs(whole_demo(first, second).astype(int) - expected.astype(int)).max() <= 1


def demo_videos_alone() -> np.ndarray:
    engine = demo_engine("klt2")
    engine.submit(demo_requests()[0])
    return frames_of(list(engine.run()))
