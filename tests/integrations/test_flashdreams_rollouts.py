"""Rollouts of flashdreams on pages: how they end, what is refused, and what an error leaves behind."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from pagedvid import StreamCodecs
from pagedvid.errors import CapacityError, ConfigError, NonFiniteError, StateError
from pagedvid.integrations.flashdreams import PagedRollouts, install
from tests.integrations.flashdreams_cpu import library, open_rollout, roll_out, set_up, wan_config

SIZE = (6, 10)


@pytest.fixture
def transformer() -> Any:
    return set_up(wan_config(sink_size_t=2))


@pytest.fixture
def rollouts(transformer) -> PagedRollouts:
    return install(transformer, "1MiB", codecs=StreamCodecs("int2"))


def test_weights_keep_their_names(transformer):
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    install(transformer, "1MiB")
    after = transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_rollout_ends_when_the_host_lets_go_of_it(transformer, rollouts):
    first, second = open_rollout(transformer, *SIZE), open_rollout(transformer, *SIZE)
    roll_out(transformer, first, 3)
    roll_out(transformer, second, 2)
    del first
    rollouts.release_dropped()
    (left,) = rollouts.cache.streams
    assert left.num_committed == 2
    rollouts.cache.check()
    del second
    open_rollout(transformer, *SIZE)
    assert [stream.num_committed for stream in rollouts.cache.streams] == [0]
    assert rollouts.cache.stats().pages_used == 0


def test_capacity_is_checked_when_a_rollout_opens():
    transformer = set_up(wan_config(batch_shape=(2,)))
    rollouts = install(transformer, "32KiB", codecs=StreamCodecs("fp32"))
    with pytest.raises(CapacityError, match="are left"):
        open_rollout(transformer, *SIZE, num_videos=2)
    assert rollouts.cache.streams == () and rollouts.cache.reserved_pages == 0


def test_a_failed_commit_pass_can_be_run_again(transformer, rollouts):
    rollout = open_rollout(transformer, *SIZE)
    roll_out(transformer, rollout, 1)
    latent = torch.randn(transformer.latent_shape)
    rollout.start(1)
    with pytest.raises(NonFiniteError, match="chunk 1"):
        transformer.finalize_kv_cache(torch.full_like(latent, torch.nan), torch.tensor(0.0), rollout)
    assert rollouts.cache.streams[0].num_committed == 1
    transformer.predict_flow(latent, torch.tensor(500.0), rollout)  # a denoise step, not a commit pass
    assert rollouts.cache.streams[0].num_committed == 1
    transformer.finalize_kv_cache(latent, torch.tensor(0.0), rollout)
    rollout.finalize(1)
    assert rollouts.cache.streams[0].num_committed == 2
    rollouts.cache.check()


def test_no_chunk_is_lost_or_stored_twice(transformer, rollouts):
    rollout = open_rollout(transformer, *SIZE)
    latent, zero = torch.randn(transformer.latent_shape), torch.tensor(0.0)
    rollout.start(0)
    transformer.predict_flow(latent, zero, rollout)
    with pytest.raises(StateError, match="chunk 1 was begun, but chunk 0 is next"):
        rollout.start(1)
    transformer.finalize_kv_cache(latent, zero, rollout)
    with pytest.raises(StateError, match="chunk 1 was not begun"):
        transformer.finalize_kv_cache(latent, zero, rollout)
    with pytest.raises(StateError, match="chunk 0 was begun, but chunk 1 is next"):
        rollout.start(0)
    assert rollouts.cache.streams[0].num_committed == 1
    rollouts.cache.check()


def test_a_network_without_its_transformer():
    """Eager mode: the network itself calls before_update and after_update around each forward."""

    def flows(on_pages: bool) -> torch.Tensor:
        network = set_up(wan_config()).network
        rollouts = install(network, "1MiB", codecs=StreamCodecs("fp32")) if on_pages else None
        text = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
        cache = network.initialize_cache(chunk_size=30, window_size=90, sink_size=0, text_embeddings=text)
        rope = library("core.attention").RotaryPositionEmbedding3D(
            12, 3, 5, 2, interleaved=True, device=torch.device("cpu")
        )
        if rollouts is not None:
            rollouts.use_rope(cache, rope)
        latents = torch.randn(5, 2, 1, 30, 16, generator=torch.Generator().manual_seed(2))
        out = []
        for chunk, (noisy, clean) in enumerate(latents):
            freqs = rope.shift_t(chunk)
            out.append(network(noisy, torch.tensor(700.0), cache, freqs, current_chunk_idx=chunk))
            if rollouts is None:
                network(clean, torch.tensor(0.0), cache, freqs, current_chunk_idx=chunk)
                continue
            with rollouts.commit_pass():
                network(clean, torch.tensor(0.0), cache, freqs, current_chunk_idx=chunk)
        return torch.stack(out)

    assert torch.allclose(flows(False), flows(True), atol=2e-5, rtol=1e-4)


def test_reset_begins_anew(transformer, rollouts):
    rollout = open_rollout(transformer, *SIZE)
    first = roll_out(transformer, rollout, 3)
    for block_cache in rollout.network_cache.block_caches:
        block_cache.self_attn.reset()
    assert rollouts.cache.stats().pages_used == 0
    assert torch.equal(roll_out(transformer, rollout, 3), first)
    rollouts.cache.check()


def test_what_cannot_run_on_pages_is_refused(transformer):
    with pytest.raises(ConfigError, match="Linear contains no WanDiTNetwork"):
        install(torch.nn.Linear(2, 2), "1MiB")
    transformer.config.use_cuda_graph = True
    with pytest.raises(ConfigError, match=r"set up with use_cuda_graph.*with both off"):
        install(transformer, "1MiB")
    transformer.config.use_cuda_graph = False
    install(transformer, "1MiB")
    with pytest.raises(ConfigError, match="already runs on pages"):
        install(transformer, "1MiB")
    with pytest.raises(ConfigError, match="differ in layers, heads or head_dim"):
        install(torch.nn.ModuleList([set_up(wan_config(head_dim)) for head_dim in (12, 24)]), "1MiB")


def test_a_sink_of_half_a_chunk_is_refused():
    transformer = set_up(wan_config(window_size_t=5, sink_size_t=1))
    rollouts = install(transformer, "1MiB")
    with pytest.raises(ConfigError, match="sink_size 15 and window_size 75 must be whole chunks of 30 tokens"):
        open_rollout(transformer, *SIZE)
    assert rollouts.cache.streams == ()


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashdreams.recipes.wan.transformer.impl.network", None)
    with pytest.raises(ConfigError, match=r"pip install 'pagedvid\[flashdreams\]'"):
        install(torch.nn.Linear(2, 2), "1MiB")
