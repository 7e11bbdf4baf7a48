"""flashdreams' own Wan network: with our pages as with its own cache, then in int2."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagedvid import StreamCodecs
from pagedvid.integrations.flashdreams import install
from tests.integrations.flashdreams_cpu import library, open_rollout, roll_out, set_up, wan_config

FP32 = StreamCodecs("fp32")
HEIGHT, WIDTH = 6, 10  # 15 tokens in a frame, 30 in a chunk


def both(config: Any, num_videos: int = 1, num_chunks: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Flows of the same rollout with its own cache and with ours."""
    flows = []
    for on_pages in (False, True):
        transformer = set_up(config)
        if on_pages:
            install(transformer, "8MiB", codecs=FP32)
        flows.append(roll_out(transformer, open_rollout(transformer, HEIGHT, WIDTH, num_videos), num_chunks))
    return flows[0], flows[1]


@pytest.mark.parametrize(
    ("window_size_t", "sink_size_t"), [(6, 0), (6, 2), (4, 4), (2, 0), (2, 4)], ids=lambda size: str(size)
)
@pytest.mark.parametrize("relative_rope", [False, True], ids=["absolute", "relative"])
def test_same_flows_as_with_its_own_cache(window_size_t, sink_size_t, relative_rope):
    """Filling and rolling: at most 4 chunks are kept, 8 are made."""
    config = wan_config(relative_rope=relative_rope, window_size_t=window_size_t, sink_size_t=sink_size_t)
    own, ours = both(config)
    assert torch.allclose(own, ours, atol=2e-5, rtol=1e-4)
    assert float(own.std()) > 0.3


@pytest.mark.parametrize("state", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode])
def test_what_a_host_has_set_reaches_its_own_layers_only(state):
    """The same rollout under autocast, whose network computes in bfloat16 then, or in inference mode."""
    with state():
        own, ours = both(wan_config(), num_chunks=4)
    assert float((own - ours).norm() / own.norm()) < 0.05


def test_history_matters_here():
    """What the comparison above rests on: another window, other flows."""
    wide, _ = both(wan_config(window_size_t=6))
    narrow, _ = both(wan_config(window_size_t=4))
    assert torch.equal(wide[:2], narrow[:2])
    assert float((wide[2:] - narrow[2:]).abs().amax(dim=(1, 2, 3, 4)).min()) > 1e-2


def test_guided_batches():
    """Two videos in lockstep, each with a conditional and an unconditional history."""
    own, ours = both(wan_config(sink_size_t=2, guidance_scale=3.0, batch_shape=(2,)), num_videos=2)
    assert torch.allclose(own, ours, atol=1e-4, rtol=1e-4)


def test_two_networks_of_wan22():
    config = library("recipes.wan.transformer.wan22").Wan22TransformerConfig(
        transformer_high_noise=wan_config(), transformer_low_noise=wan_config(), boundary_ratio=0.6
    )
    own, ours = both(config)
    assert torch.allclose(own, ours, atol=2e-5, rtol=1e-4)


def test_a_diffusion_model_with_its_scheduler():
    """A recipe's own loop: noise, few-step sampler, `finalize`."""
    scheduler = library("infra.diffusion.scheduler.fm").FlowMatchSchedulerConfig()
    transformer = wan_config(sink_size_t=2)
    config = library("infra.diffusion.model").DiffusionModelConfig(
        transformer=transformer, scheduler=scheduler, seed=3, context_noise=0
    )
    videos = []
    for on_pages in (False, True):
        model = config.setup()
        model.transformer = set_up(config.transformer)
        if on_pages:
            install(model, "8MiB", codecs=FP32)
        rollout = open_rollout(model.transformer, HEIGHT, WIDTH)
        with torch.no_grad():
            for chunk in range(6):
                latents, final_state = model.generate(chunk, rollout)
                model.finalize(final_state)
                videos.append(latents)
    for own, ours in zip(videos[:6], videos[6:], strict=True):
        assert own.shape == (1, 2, 4, HEIGHT, WIDTH)
        assert torch.allclose(own, ours, atol=1e-3)


def test_int2_takes_a_seventh_of_the_bytes():
    config = wan_config(head_dim=64, sink_size_t=2, dtype=torch.bfloat16)
    size = (16, 16)  # 128 tokens in a chunk
    transformer = set_up(config)
    own = open_rollout(transformer, *size).network_cache
    own_bytes = sum(x.nbytes for block in own.block_caches for x in (block.self_attn._k, block.self_attn._v))
    rollouts = install(transformer, "8MiB", codecs=StreamCodecs("int2"))
    flows = roll_out(transformer, open_rollout(transformer, *size), num_chunks=6)
    cache, (stream,) = rollouts.cache, rollouts.cache.streams
    held_bytes = stream.peak_pages * cache.pool.page_bytes
    held_bytes += sum(chunk.alpha.nbytes for chunk in stream.chunks() if chunk.alpha is not None)
    assert own_bytes / held_bytes > 7
    assert cache.stats().pages_used == stream.held_pages <= stream.peak_pages
    assert {str(chunk.codecs) for chunk in stream.chunks()} == {"int2"} and bool(torch.isfinite(flows).all())


def test_the_correction_arrives():
    """Cached chunks of rounded keys take mass from the current one, which both corrections give back."""
    config, size = wan_config(head_dim=24, sink_size_t=2), (16, 16)

    def flows(codec: str, correction: str) -> torch.Tensor:
        transformer = set_up(config)
        install(transformer, "8MiB", codecs=StreamCodecs(codec), correction=correction)
        return roll_out(transformer, open_rollout(transformer, *size), num_chunks=6)[1:]

    exact = flows("fp32", "off")
    error = {how: float((flows("int2", how) - exact).norm() / exact.norm()) for how in ("off", "formula", "measured")}
    assert error["formula"] < 0.95 * error["off"] and error["measured"] < 0.95 * error["off"]
    assert 0.01 < error["off"] < 0.2
