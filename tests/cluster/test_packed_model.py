"""A packed model is the same model: large tensors are views of the arrays, and the same videos come out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pagedvid.cluster import packed_model
from pagedvid.cluster.packed_model import MIN_SHARED_BYTES, pack, unpack
from pagedvid.config.sections import CacheConfig, Config, EngineConfig, ModelConfig
from pagedvid.engine.requests import VideoRequest
from pagedvid.models.build import build_engine, load_model, resolve
from tests.models.wan.base.published import write_pipeline

REQUEST = VideoRequest("a", "a large red circle moving left on a black background", 16, seed=3)


def frozen(model):
    """A model from arrays that cannot be written to, as those of the object store."""
    packed = pack(model)
    for array in packed.arrays:
        array.flags.writeable = False
    return unpack(packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
def test_tensors_come_back(dtype):
    part = {"a": torch.arange(12).reshape(3, 4).to(dtype), "b": torch.ones((), dtype=dtype)}
    part["view"] = part["a"].T
    part["again"] = part["a"]
    back = unpack(pack(part))
    assert all(torch.equal(back[name], part[name]) and back[name].dtype == dtype for name in part)
    assert back["again"] is back["a"]


def test_large_weights_are_shared_and_small_ones_are_not():
    layer = nn.Linear(MIN_SHARED_BYTES, 1).requires_grad_(False)
    packed = pack(layer)
    addresses = {array.ctypes.data for array in packed.arrays}
    back = unpack(packed)
    assert back.weight.data_ptr() in addresses
    assert back.bias.data_ptr() not in addresses
    assert isinstance(back.weight, nn.Parameter)


def frames(run, model):
    engine = build_engine(replace(run, model=replace(run.model, load=lambda prompts: model)))
    engine.submit(REQUEST)
    made = []
    while engine.has_work:
        made += [output.frames for output in engine.step()]
    return np.concatenate(made)


DEMO = Config(ModelConfig(), CacheConfig(memory="16MiB"), engine=EngineConfig(reproducible=True))


def wan(folder, **chosen) -> Config:
    """A tiny pipeline with a text encoder and a VAE."""
    write_pipeline(folder, "WanTransformer3DModel")
    model = ModelConfig("self-forcing", weights=str(folder), height=48, width=80, **chosen)
    return Config(model, CacheConfig(memory="1MiB", codec="int2"), engine=EngineConfig(reproducible=True))


WAN = {"wan": {}, "wan in 8 bits": {"weights_dtype": "fp8"}, "wan in host memory": {"offload": True}}


@pytest.mark.parametrize("name", ["demo", *WAN])
def test_the_same_video_comes_from_arrays_that_cannot_be_written_to(name, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_model, "MIN_SHARED_BYTES", 1)
    run = resolve(DEMO if name == "demo" else wan(tmp_path / "wan", **WAN[name]))
    model = load_model(run, [REQUEST.prompt])
    assert np.array_equal(frames(run, model), frames(run, frozen(model)))


def test_weights_in_host_memory_are_packed_once(tmp_path):
    """Neither the pieces of host memory nor the places on the device, which are made anew."""
    plain, away = (
        load_model(resolve(wan(tmp_path / name, offload=offload)), [REQUEST.prompt])
        for name, offload in (("plain", False), ("away", True))
    )
    sizes = [sum(array.nbytes for array in pack(model).arrays) for model in (plain, away)]
    assert sizes[0] == sizes[1]
