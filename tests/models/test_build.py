"""From a configuration to an engine: the settings arrive where they count."""

from __future__ import annotations

import pytest
import torch

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.config.sections import AttentionConfig, CacheConfig, Config, EngineConfig, ModelConfig
from pagedvid.errors import BackendError, CapacityError, ConfigError
from pagedvid.models.build import build_engine, resolve


def test_every_setting_reaches_the_engine():
    run = resolve(
        Config(
            cache=CacheConfig(
                memory="3MiB",
                codec="int4",
                sink_codec="int8",
                newest_codec="bf16",
                sink_chunks=2,
                recent_chunks=3,
                correction="formula",
                debug_checks=True,
            ),
            engine=EngineConfig(max_batch_tokens=512, policy="round_robin", concurrent=3, denoise_steps=5),
        )
    )
    engine = build_engine(run)
    geometry, spec = engine.model.geometry, engine.cache.spec
    assert (spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.query_heads) == (
        geometry.num_layers,
        geometry.num_kv_heads,
        geometry.head_dim,
        geometry.num_query_heads,
    )
    assert spec.codecs == StreamCodecs("int4", sink="int8", newest="bf16")
    assert (spec.correction, spec.debug_checks) == ("formula", True)
    assert engine.cache.pool.num_pages == 3 * 2**20 // (36 * geometry.head_dim)
    assert engine.window == Window(2, 3, positions="window")
    assert (engine.max_batch_tokens, engine.policy, engine.max_concurrent, engine.num_denoise_steps) == (
        512,
        "round_robin",
        3,
        5,
    )


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("self-forcing", 5, "num_denoise_steps is 5; self-forcing was distilled to 4 steps"),
        ("causvid", 4, "num_denoise_steps is 4; causvid was distilled to 3 steps"),
        ("hy-worldplay-5b", 50, "num_denoise_steps is 50; hy-worldplay-5b was distilled to 4 steps"),
        ("magi-1-4.5b", 5, "5 denoise steps cannot be dealt out"),
    ],
)
def test_denoise_steps_that_a_model_cannot_run_are_refused_at_the_start(name, steps, message):
    """Before the weights are looked for: there are none here."""
    for denoise_steps, expected in ((steps, f"^engine.denoise_steps: {message}"), (None, "ships without weights")):
        config = Config(model=ModelConfig(name=name), engine=EngineConfig(denoise_steps=denoise_steps))
        with pytest.raises(ConfigError, match=expected):
            build_engine(resolve(config))


def test_auto_concurrency_is_limited_by_memory_alone():
    assert build_engine(resolve(Config(cache=CacheConfig(memory="1MiB")))).max_concurrent is None


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (Config(cache=CacheConfig(sink_chunks=3, recent_chunks=3)), ConfigError, r"exceed the 6 chunks that demo"),
        (Config(model=ModelConfig(name="nothing")), ConfigError, "demo"),
        (
            Config(attention=AttentionConfig(backend="nothing")),
            BackendError,
            r"'nothing'; allowed are auto, triton, torch",
        ),
        (Config(cache=CacheConfig(memory="1KiB", codec="int2")), CapacityError, r"holds no page; one needs 2304 bytes"),
    ],
    ids=["window", "model", "backend", "memory"],
)
def test_what_cannot_be_built_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        build_engine(resolve(config))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(ConfigError, match=r"device is 'cuda:1', but PyTorch sees 0 CUDA devices"):
        build_engine(resolve(Config(model=ModelConfig(device="cuda:1"))))
