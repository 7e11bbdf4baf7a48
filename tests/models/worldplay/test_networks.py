"""Both networks with dense attention, against every recorded call."""

from __future__ import annotations

import pytest
import torch

from pagedvid.models.worldplay.network_8b import TextKeys
from pagedvid.models.worldplay.network_wan5b import TextSpan
from tests.models.worldplay.dense import DenseAttend, DenseMemory
from tests.models.worldplay.recordings import (
    NUM_CHUNKS,
    NUM_STEPS,
    TOLERANCE,
    VARIANTS,
    calls,
    cameras,
    chunk_frames,
    inputs,
    max_error,
    memory_frames,
    network,
    rope,
    text_inputs,
    tokens_of,
)


@pytest.fixture(scope="module")
def text_keys() -> TextKeys:
    return network("hy8b").encode_text(text_inputs())


def run_call(variant, name, frames, attend, text_keys):
    recorded = calls(variant)
    tokens = tokens_of(variant, recorded[f"{name}.hidden_states"][0])
    actions = inputs(variant)["action"][0][list(frames)]
    if variant == "hy8b":
        attend.text = text_keys
        return network(variant)(tokens, recorded[f"{name}.timestep"], actions, attend)
    text = network(variant).encode_text(inputs(variant)["prompt_embeds"][0])
    spans = [TextSpan(len(frames), text)]
    return network(variant)(tokens, recorded[f"{name}.timestep"], actions, spans, attend)


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_recorded_call(variant, chunk, text_keys):
    memory, frames = None, memory_frames(variant, chunk)
    if chunk:
        memory = DenseMemory()
        attend = DenseAttend(rope(variant), cameras(variant).select(frames), 0, builds=memory)
        run_call(variant, f"c{chunk:02d}.mem", frames, attend, text_keys)
        _check_memory(variant, chunk, memory)
    for step in range(NUM_STEPS):
        name, own = f"c{chunk:02d}.s{step}", chunk_frames(chunk)
        attend = DenseAttend(rope(variant), cameras(variant).select(own), len(frames), memory)
        out = run_call(variant, name, own, attend, text_keys)
        assert max_error(out, tokens_of(variant, calls(variant)[f"{name}.output"][0])) < TOLERANCE / 5


def _check_memory(variant, chunk, memory):
    for layer, (k_rope, v, k_p, v_p) in memory.layers.items():
        key = f"c{chunk:02d}.mem.block{layer}"
        if f"{key}.k" not in calls(variant):
            continue
        if variant == "hy8b":
            expected_k, expected_v = calls(variant)[f"{key}.k"], calls(variant)[f"{key}.v"]
        else:
            expected_k, expected_v = (torch.stack(calls(variant)[f"{key}.{x}"][0].chunk(2, -1)) for x in "kv")
        for copy, (k, values) in enumerate(((k_rope, v), (k_p, v_p))):
            assert max_error(k.transpose(0, 1), expected_k[copy]) < TOLERANCE / 5
            assert max_error(values.transpose(0, 1), expected_v[copy]) < TOLERANCE / 5


def test_text_pass_of_the_8b(text_keys):
    recorded = calls("hy8b")
    for layer in range(3):
        assert max_error(text_keys.keys[layer].transpose(0, 1), recorded[f"text.block{layer}.k"][0]) < TOLERANCE / 5
        assert max_error(text_keys.values[layer].transpose(0, 1), recorded[f"text.block{layer}.v"][0]) < TOLERANCE / 5
