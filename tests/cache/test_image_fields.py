"""Streams that went through JSON and tensors: every field comes back, and attention goes on bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pagedvid.cache.image_fields import image_from_fields, image_to_fields
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_image import StreamImage
from tests.cache.test_stream_copies import ROPE, SCENES, forward, new_cache, video
from tests.engine.snapshots import assert_same


def written_and_read(image: StreamImage, spec: CacheSpec) -> StreamImage:
    tensors: dict[str, torch.Tensor] = {}
    fields = json.loads(json.dumps(image_to_fields(image, tensors)))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    read = image_from_fields(fields, tensors, spec)
    assert tensors == {}
    return read


@pytest.mark.parametrize("name", SCENES)
def test_every_field_comes_back_but_what_the_model_gives(name):
    cache = new_cache(SCENES[name])
    image = cache.copy_out(video(cache))
    plain = image.with_chunks(lambda _, chunk: replace(chunk, ropes={}, tag=None))
    assert_same(written_and_read(image, cache.spec), plain)


@pytest.mark.parametrize("positions", ["absolute", "window"])
@pytest.mark.parametrize("name", SCENES)
def test_attention_goes_on_bit_for_bit_in_another_cache(name, positions):
    here, there = new_cache(SCENES[name]), new_cache(SCENES[name])
    stream = video(here, positions)
    tags = {
        (branch, chunk.index): chunk.tag for branch, each in stream.branches.items() for chunk in each.chunks.values()
    }
    image = written_and_read(here.copy_out(stream), there.spec)
    twin = there.copy_in(image.with_model(ROPE, lambda branch, index: tags[branch, index]))
    there.check()
    for seed in range(20, 23):
        for commits in (False, True):
            outs = (forward(cache, each, seed, commits=commits) for cache, each in ((here, stream), (there, twin)))
            assert torch.equal(*outs)
