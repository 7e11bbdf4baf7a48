"""The built-in model on a GPU, end to end, gives the videos that it gives on the CPU. Skipped elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.config.sections import AttentionConfig, CacheConfig, Config, ModelConfig
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.models.build import build_engine, resolve

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PROMPT = "a large red circle moving left on a black background"


def frames(device: str, backend: str, codec: str) -> Tensor:
    """All frames of two videos that are made together, in 0..255."""
    settings = {
        "model": ModelConfig(device=device),
        "cache": CacheConfig(memory="4MiB", codec=codec),
        "attention": AttentionConfig(backend=backend),
    }
    engine = build_engine(resolve(Config(**settings)), [PROMPT])
    for number in range(2):
        engine.submit(VideoRequest(f"video-{number}", PROMPT, 48, seed=number))
    outputs = list(engine.run())
    assert all(isinstance(output, ChunkOutput) for output in outputs), outputs
    return torch.stack([torch.from_numpy(output.frames).float() for output in outputs])


@pytest.mark.parametrize("backend", ["scratch", "fused"])
@pytest.mark.parametrize("codec", ["auto", "int2"])
def test_videos_are_those_of_the_cpu(backend: str, codec: str) -> None:
    """Not bit for bit: sums are taken in another order, and a code beside an edge may get another level."""
    square_error = float((frames("cuda", backend, codec) - frames("cpu", "torch", codec)).square().mean())
    assert square_error < 1.0, f"{square_error:.3g}: below 1, PSNR is above 48 dB"
