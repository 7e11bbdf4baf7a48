"""The VAE of Wan 2.2 5B with its 48 channels, to the last digits: chunks that stream out, and given frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.integrations import vae as vae_module
from pagedvid.integrations.vae import VideoVae
from tests.integrations.tiny_parts import WAN22_5B, wan_vae

ROWS, COLUMNS = 4, 6


@pytest.fixture
def vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VideoVae:
    """Its frames come out before they are rounded: float32 [N, height, width, 3] in -1..1."""
    monkeypatch.setattr(vae_module, "_pixels", lambda video: video.clamp(-1, 1).permute(1, 2, 3, 0).numpy())
    wan_vae(**WAN22_5B).save_pretrained(tmp_path)
    return VideoVae(tmp_path)


def random_latents(num_frames: int, seed: int = 1) -> Tensor:
    return torch.randn(num_frames, 48, ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def statistics() -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(WAN22_5B[f"latents_{name}"]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    return mean, std


@torch.no_grad()
def decoded_at_once(latents_FCRS: Tensor) -> np.ndarray:
    """By the library, the whole video in one call, float32 [N, height, width, 3]."""
    mean, std = statistics()
    x = latents_FCRS.transpose(0, 1) * std + mean
    return wan_vae(**WAN22_5B).decode(x[None], return_dict=False)[0][0].permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (2, 2, 2), (6,)])
def test_chunks_that_stream_out_are_the_video_decoded_at_once(vae, sizes):
    latents, stream = random_latents(6), vae.stream()
    parts = [stream(part) for part in latents.split(sizes)]
    assert [len(part) for part in parts] == [4 * size - 3 * (place == 0) for place, size in enumerate(sizes)]
    expected = decoded_at_once(latents)
    assert expected.shape == (21, 16 * ROWS, 16 * COLUMNS, 3) and expected.std() > 0.1
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=1e-5)


def test_streams_that_take_turns_keep_to_themselves(vae):
    videos = [random_latents(6, seed) for seed in (1, 2, 3)]
    streams = [vae.stream() for _ in videos]
    parts = [
        [stream(video[first : first + 3]) for stream, video in zip(streams, videos, strict=True)] for first in (0, 3)
    ]
    for number, video in enumerate(videos):
        frames = np.concatenate([part[number] for part in parts])
        np.testing.assert_allclose(frames, decoded_at_once(video), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_before", [1, 3])
def test_a_restored_stream_goes_on_where_the_other_was(vae, num_before):
    latents, stream, other = random_latents(6), vae.stream(), vae.stream()
    first = stream(latents[:num_before])
    other.restore({name: tensor.clone() for name, tensor in stream.state().items()})
    frames = np.concatenate([first, other(latents[num_before:])])
    np.testing.assert_allclose(frames, decoded_at_once(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 9, 21])
@torch.no_grad()
def test_given_frames_are_encoded_as_the_library_does(vae, num_frames):
    draw = torch.Generator().manual_seed(2)
    frames = torch.randint(0, 256, (num_frames, 16 * ROWS, 16 * COLUMNS, 3), dtype=torch.uint8, generator=draw)
    x = (frames.float() / 127.5 - 1).permute(3, 0, 1, 2)
    mean, std = statistics()
    encoded = wan_vae(**WAN22_5B).encode(x[None]).latent_dist.mode()[0]
    expected = ((encoded - mean) / std).transpose(0, 1)
    assert expected.shape == (1 + (num_frames - 1) // 4, 48, ROWS, COLUMNS) and expected.std() > 0.05
    torch.testing.assert_close(vae.encode(frames), expected, rtol=1e-5, atol=1e-5)


def test_latents_of_wan_21_are_refused(vae):
    with pytest.raises(ConfigError, match=r"this VAE decodes \[frames, 48, rows, columns\]"):
        vae.stream()(torch.zeros(3, 16, ROWS, COLUMNS))
