"""`engine.reproducible`: a video's latents are the same to the last bit, whatever runs next to it.

Company changes the shape of a forward's products, and with it the last bits of float32 sums; every case here fails when
forwards are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.cli.main import main
from pagedvid.config.sections import AttentionConfig, CacheConfig, Config, EngineConfig, frame_settings
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, RequestFailure, VideoRequest
from pagedvid.models.build import build_engine, resolve
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.models.demo.weights import load_demo
from pagedvid.models.wan.causal.pipeline import WanCausal
from pagedvid.models.wan.causal.spec import WanCausalSettings
from pagedvid.models.wan.skyreels.pipeline import SkyReelsV2
from pagedvid.models.wan.skyreels.spec import SkyReelsSettings
from pagedvid.paged_kv_cache import PagedKVCache
from tests.engine.toy_model import assert_all_pages_free
from tests.models.magi1 import recordings as magi
from tests.models.wan.base import tiny as wan
from tests.models.worldplay import rollout as worldplay

PROMPT = "a large red circle moving left on a black background"
NO_NOISE_SEED = 666
"""Its noise ends with the first chunk."""
NUM_FRAMES = 16
CHUNK_TOKENS = 128
CACHES = {
    **{
        codec: CacheConfig(codec=codec)
        for codec in (
            "fp32", "bf16", "int8", "int4", "int2", "int2-pair-s8", "int2-post", "token2-g64", "hadamard2-g64",
            "klt1.5/klt3",
        )
    },
    "roles": CacheConfig(codec="int4/int2", sink_codec="int8", newest_codec="bf16", layer_codecs={0: "klt2"}),
}  # fmt: skip


class ShowsLatents(DemoModel):
    """Its frames are its latents, so that no bit is lost on the way out."""

    def initial_noise(self, seed: int, chunk_index: int) -> Tensor:
        if seed == NO_NOISE_SEED and chunk_index:
            raise ArithmeticError("no noise is left")
        return super().initial_noise(seed, chunk_index)

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        return latents_TC.numpy()


@lru_cache
def demo() -> ShowsLatents:
    loaded = load_demo()
    return ShowsLatents(loaded.network, loaded.rope, loaded.geometry)


def demo_engine(cache: CacheConfig, num_steps: int = 2, memory: str = "16MiB", **changes) -> Engine:
    run = resolve(Config(cache=cache))
    pages = PagedKVCache(run.cache, memory, tables=run.tables)
    window = Window(1, 4, positions="window")
    return Engine(demo(), pages, window, num_denoise_steps=num_steps, reproducible=True, **changes)


def latents_of(outputs: Sequence[object], id: str) -> np.ndarray:
    return np.concatenate([o.frames for o in outputs if isinstance(o, ChunkOutput) and o.request_id == id])


def alone(engine: Engine, request: VideoRequest) -> np.ndarray:
    engine.submit(request)
    return latents_of(list(engine.run()), request.id)


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_in_company_that_comes_fails_and_is_cancelled(cache):
    """A neighbour joins before, one fails after its first chunk, one is cancelled, and one comes late."""
    request = VideoRequest("video", PROMPT, NUM_FRAMES, seed=4)
    expected = alone(demo_engine(cache), request)
    engine = demo_engine(cache, policy="round_robin", max_batch_tokens=8 * CHUNK_TOKENS)
    engine.submit(VideoRequest("cancelled", "a small blue square", NUM_FRAMES, seed=1))
    outputs = engine.step()
    engine.submit(VideoRequest("fails", PROMPT, NUM_FRAMES, seed=NO_NOISE_SEED))
    engine.submit(request)
    outputs += [output for _ in range(5) for output in engine.step()]
    engine.cancel("cancelled")
    engine.submit(VideoRequest("late", "a small blue square", 8, seed=2))
    outputs += list(engine.run())
    assert [output.request_id for output in outputs if isinstance(output, RequestFailure)] == ["fails"]
    assert np.array_equal(latents_of(outputs, "video"), expected)
    assert_all_pages_free(engine)


@lru_cache
def alone_in_int2(seed: int) -> np.ndarray:
    return alone(demo_engine(CACHES["int2"], num_steps=1), VideoRequest("alone", PROMPT, NUM_FRAMES, seed))


@given(
    arrivals=st.lists(st.integers(0, 6), min_size=2, max_size=4),
    policy=st.sampled_from(["fcfs", "round_robin"]),
    max_batch_tokens=st.sampled_from([1, 3 * CHUNK_TOKENS, 100_000]),
    max_concurrent=st.none() | st.integers(1, 3),
    memory=st.sampled_from(["200KiB", "16MiB"]),
)
@settings(max_examples=5)
def test_whatever_the_order_of_arrival_and_the_settings(arrivals, policy, max_batch_tokens, max_concurrent, memory):
    """200 KiB hold a single stream."""
    engine = demo_engine(
        CACHES["int2"], 1, memory, policy=policy, max_batch_tokens=max_batch_tokens, max_concurrent=max_concurrent
    )
    outputs: list[object] = []
    for step in range(max(arrivals) + 1):
        for seed in (seed for seed, arrival in enumerate(arrivals) if arrival == step):
            engine.submit(VideoRequest(str(seed), PROMPT, NUM_FRAMES, seed))
        outputs += engine.step()
    outputs += list(engine.run())
    for seed in range(len(arrivals)):
        assert np.array_equal(latents_of(outputs, str(seed)), alone_in_int2(seed))


# ---------------------------------------------------------------------- other models


def magi_case(codec: str) -> tuple[Callable[..., Engine], list[VideoRequest]]:
    """Guidance, and several chunks in flight."""
    recorded = magi.ROLLOUTS["w4_cfg3"]
    model, first = magi.recorded_model(recorded), recorded.request("first")
    requests = [replace(first, num_frames=9), replace(first, id="second", seed=5, num_frames=5)]
    return lambda **how: magi.engine_of(model, recorded.num_steps, codec, **how), requests


def worldplay_case(variant: str) -> tuple[Callable[..., Engine], list[VideoRequest]]:
    """Memory rebuilt for every chunk; two views of the same pages."""
    model = worldplay.make_model(variant)
    requests = [worldplay.request(variant, num_frames=12), worldplay.request(variant, "other", seed=7, num_frames=8)]
    return lambda **how: worldplay.make_engine(model, "int8", **how), requests


def wan_case(branches: tuple[str, ...], ar_step: int = 0) -> tuple[Callable[..., Engine], list[VideoRequest]]:
    """Self-Forcing with one branch, SkyReels-V2 with two."""
    if len(branches) == 1:
        transformer = wan.tiny_transformer("WanTransformer3DModel")
        model = WanCausal(transformer, WanCausalSettings(**wan.SIZE, name="tiny"))
    else:
        transformer = wan.tiny_transformer("SkyReelsV2Transformer3DModel")
        how = {"name": "tiny", "num_denoise_steps": 3, "sink_frames": 3, "window_frames": 9, "ar_step": ar_step}
        model = SkyReelsV2(transformer, SkyReelsSettings(**wan.SIZE, **how))

    def new_engine(**changes) -> Engine:
        engine = wan.engine_of(model, "int4", correction="measured")
        vars(engine).update(changes)
        return engine

    inputs = [{"embeddings": wan.embeddings(seed, branches)} for seed in (5, 6)]
    return new_engine, [VideoRequest(str(seed), "", 9, seed, rows) for seed, rows in enumerate(inputs)]


CASES = {
    "magi-1": lambda: magi_case("int2"),
    "worldplay-8b": lambda: worldplay_case("hy8b"),
    "worldplay-5b": lambda: worldplay_case("wan5b"),
    "self-forcing": lambda: wan_case(("cond",)),
    "skyreels-v2": lambda: wan_case(("cond", "uncond")),
    "skyreels-v2 in flight": lambda: wan_case(("cond", "uncond"), ar_step=2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_models_with_branches_memory_and_several_chunks_in_flight(case):
    new_engine, requests = case()
    expected = {request.id: alone(new_engine(reproducible=True, policy="round_robin"), request) for request in requests}
    engine = new_engine(reproducible=True, policy="round_robin")
    outputs: list[object] = []
    for request in requests:
        engine.submit(request)
        outputs += engine.step()
    outputs += list(engine.run())
    for id, latents in expected.items():
        assert latents.std() > 0.1
        assert np.array_equal(latents_of(outputs, id), latents), id


# ---------------------------------------------------------------------- the setting


def test_the_setting_reaches_the_engine():
    for value in (False, True):
        assert build_engine(resolve(Config(engine=EngineConfig(reproducible=value)))).reproducible is value


def test_it_decides_frames_and_so_does_what_rounds_otherwise():
    """On its own, a video is rounded otherwise by another backend, scratch, device, compiler or number of threads."""
    batched, apart = (frame_settings(Config(engine=EngineConfig(reproducible=value))) for value in (False, True))
    assert (batched["engine.reproducible"], apart["engine.reproducible"]) == (False, True)
    assert apart.keys() - batched.keys() == {
        "model.device",
        "model.compile",
        "model.cuda_graphs",
        "model.text_encoder_device",
        "model.vae_device",
        "attention.backend",
        "attention.scratch",
        "generate.threads",
        "generate.devices",
    }
    for attention in (AttentionConfig(backend="torch"), AttentionConfig(scratch="1MiB")):
        assert frame_settings(Config(attention=attention)) == batched
        assert frame_settings(Config(attention=attention, engine=EngineConfig(reproducible=True))) != apart


def test_a_resumed_run_makes_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Three videos at once; one is lost and made again on its own."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text(f"{PROMPT}\na small blue square\na small yellow triangle circling\n")
    arguments = ["generate", "--prompts", str(prompts), "--out", str(out), "--frames", "16"]
    arguments += ["--set", "engine.denoise_steps=1", "--set", "generate.threads=1", "--set"]
    assert main([*arguments, "engine.reproducible=true"]) == 0
    lost = sorted(out.glob("*.mp4"))[1]
    before = lost.read_bytes()
    lost.unlink()
    capsys.readouterr()
    assert main([*arguments, "engine.reproducible=false", "--resume"]) == 2
    assert "engine.reproducible: True -> False" in capsys.readouterr().err
    assert main([*arguments, "engine.reproducible=true", "--resume"]) == 0
    assert lost.read_bytes() == before
