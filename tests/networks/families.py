"""A small model of every family whose blocks can be compiled, and three videos that come and go at different times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.models.demo.network import Transformer as DemoTransformer
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.walk.network import Transformer as WalkTransformer
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.paged_kv_cache import PagedKVCache
from tests.models.magi1.recordings import ROLLOUTS, recorded_model
from tests.models.magi1.test_batches import videos as captioned
from tests.models.specs import load_model
from tests.models.wan.base.loras import peft_file, random_pairs
from tests.models.wan.base.published import write_transformer
from tests.models.wan.base.tiny import embeddings

SIZES = TransformerConfig(width=64, num_heads=1, num_layers=3)
ACTIVE = 3
"""Steps of the engine before each later video arrives."""
Family = Callable[[Path], tuple[Any, list[VideoRequest]]]


def demo(folder: Path) -> tuple[Any, list[VideoRequest]]:
    colours = ("red", "green", "blue")
    prompts = [f"a large {colour} circle moving left on a black background" for colour in colours]
    return _shows_latents(DemoModel.of(_random(DemoTransformer))), _requests(prompts, 8)


def walk(folder: Path) -> tuple[Any, list[VideoRequest]]:
    prompts = [f"map {number}: left 4, up 4" for number in range(3)]
    return _shows_latents(WalkModel.of(_random(WalkTransformer))), _requests(prompts, 2)


def self_forcing(folder: Path) -> tuple[Any, list[VideoRequest]]:
    write_transformer(folder, "WanTransformer3DModel", num_layers=3)
    return _wan("self-forcing", folder)


def skyreels(folder: Path) -> tuple[Any, list[VideoRequest]]:
    """With everything that changes weights on their way in: 8 bits, a LoRA, blocks in host memory."""
    theirs = write_transformer(folder, "SkyReelsV2Transformer3DModel", num_layers=3)
    lora = folder.parent / "lora.safetensors"
    save_file(peft_file(random_pairs(theirs)), lora)
    return _wan("skyreels-v2-1.3b", folder, weights_dtype="fp8", offload=True, loras=[str(lora)])


def magi(folder: Path) -> tuple[Any, list[VideoRequest]]:
    """Several chunks in flight, captions of different lengths."""
    return recorded_model(ROLLOUTS["w1"]), captioned(ROLLOUTS["w1"])


FAMILIES: dict[str, Family] = {each.__name__: each for each in (demo, walk, self_forcing, skyreels, magi)}


def play(model: Any, requests: Sequence[VideoRequest], num_denoise_steps: int = 4) -> dict[str, Tensor]:
    """What every video shows, float32. A video arrives while others are made, and the shortest ends before them."""
    geometry = model.geometry
    heads = (geometry.num_kv_heads, geometry.head_dim, geometry.num_query_heads)
    cache = PagedKVCache(CacheSpec(geometry.num_layers, *heads, codecs=StreamCodecs("fp32"), correction="off"), "16MiB")
    window = Window(1, 4, positions=model.positions)
    settings = {"policy": "round_robin", "num_denoise_steps": num_denoise_steps}
    engine, outputs = Engine(model, cache, window, max_batch_tokens=10_000, **settings), []
    for request in requests:
        engine.submit(request)
        for _ in range(ACTIVE):
            outputs += engine.step()
    outputs += engine.run()
    assert all(isinstance(output, ChunkOutput) for output in outputs), outputs
    return {
        request.id: torch.cat([torch.from_numpy(each.frames) for each in outputs if each.request_id == request.id])
        for request in requests
    }


def _random(network_type: Callable[[TransformerConfig], Any]) -> Any:
    """Layers that are zero before training would hide the blocks."""
    torch.manual_seed(0)
    network = network_type(SIZES)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return network


def _shows_latents(model: Any) -> Any:
    object.__setattr__(model, "decoder", lambda condition: StatelessDecoder(lambda latents_TC: latents_TC.numpy()))
    return model


def _requests(prompts: Sequence[str], frames_per_chunk: int) -> list[VideoRequest]:
    return [
        VideoRequest(f"video-{number}", prompt, num_chunks * frames_per_chunk, seed=number)
        for number, (prompt, num_chunks) in enumerate(zip(prompts, (3, 1, 2), strict=True))
    ]


def _wan(name: str, folder: Path, **chosen: Any) -> tuple[Any, list[VideoRequest]]:
    model = load_model(name, folder, height=48, width=80, **chosen)
    branches = model.geometry.branches
    requests = _requests(("", "", ""), model.geometry.frames_per_chunk)
    inputs = [{"embeddings": embeddings(number, branches)} for number in range(3)]
    return model, [
        VideoRequest(each.id, "", each.num_frames, each.seed, given)
        for each, given in zip(requests, inputs, strict=True)
    ]
