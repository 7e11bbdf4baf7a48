"""Latents to frames by diffusers' own classes at a tiny size, and what is said when something is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.errors import ConfigError
from pagedvid.integrations.vae import VideoVae
from tests.integrations.spoiled import SPOILED_FILES, spoiled_weights
from tests.integrations.tiny_parts import VAES, by_hand, watch_network


class StandIn:
    """What `VideoVae` uses of a VAE of diffusers: config and `decode`. The mean over channels becomes a grey level."""

    def __init__(self, **config) -> None:
        self.config = type("Config", (), config)()
        self.seen: torch.Tensor | None = None

    def decode(self, x, return_dict):
        self.seen = x
        return (x.mean(1, keepdim=True).expand(-1, 3, -1, -1, -1),)


def decoder(stand_in: StandIn) -> VideoVae:
    vae = VideoVae.__new__(VideoVae)
    vae._vae, vae._device, vae._dtype = stand_in, "cpu", torch.float32
    return vae


def test_wan_latents_get_their_mean_and_deviation_back():
    stand_in = StandIn(z_dim=2, latents_mean=[0.1, -0.3], latents_std=[2.0, 0.5])
    frames = decoder(stand_in).decode(np.full((5, 2, 3, 4), 0.2, dtype=np.float32))
    assert stand_in.seen.shape == (1, 2, 5, 3, 4)
    torch.testing.assert_close(stand_in.seen[0, :, 0, 0, 0], torch.tensor([0.5, -0.2]))
    assert frames.shape == (5, 3, 4, 3) and frames.dtype == np.uint8
    assert (frames == round((0.15 + 1) * 127.5)).all()


def test_hunyuan_latents_are_divided_by_their_factor():
    stand_in = StandIn(latent_channels=2, scaling_factor=0.5)
    frames = decoder(stand_in).decode(np.full((1, 2, 3, 4), 0.9, dtype=np.float32))
    assert float(stand_in.seen.max()) == pytest.approx(1.8)
    assert (frames == 255).all()  # beyond white is white


@pytest.mark.parametrize("shape", [(5, 3, 3, 4), (2, 3, 4)])
def test_latents_of_another_model_are_refused(shape):
    with pytest.raises(ConfigError, match=r"this VAE decodes \[frames, 2, rows, columns\]"):
        decoder(StandIn(z_dim=2)).decode(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("name", VAES)
def test_frames_are_those_of_the_library(name, tmp_path):
    """The first latent gives one frame, every further one four."""
    vae = VAES[name]()
    vae.save_pretrained(tmp_path)
    latents = torch.randn(3, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    ours = VideoVae(tmp_path)
    frames = ours.decode(latents)
    pixels = 8 if name == "wan" else 16
    assert frames.shape == (9, 2 * pixels, 4 * pixels, 3)
    assert (ours.latent_channels, ours.frames_per_latent) == (4, 4)
    assert frames.std() > 5
    assert np.array_equal(frames, by_hand(vae, latents))


def test_unscaled_latents_would_show(tmp_path):
    vae = VAES["wan"]()
    vae.save_pretrained(tmp_path)
    latents = torch.randn(2, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    config = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae.register_to_config(**config)
    distance = np.abs(VideoVae(tmp_path).decode(latents).astype(int) - by_hand(vae, latents).astype(int))
    assert distance.mean() > 2


@pytest.mark.parametrize("name", VAES)
def test_bfloat16_is_close(name, tmp_path):
    VAES[name]().save_pretrained(tmp_path)
    latents = torch.randn(2, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    exact, rounded = (
        VideoVae(tmp_path, dtype=dtype).decode(latents).astype(int) for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0 < np.abs(exact - rounded).mean() < 4


# ---------------------------------------------------------------------- given frames


@pytest.mark.parametrize(("name", "pixels"), [("wan", 8), ("wan22", 16)])
@pytest.mark.parametrize("num_frames", [1, 9])
def test_frames_are_encoded_as_the_library_does(name, pixels, num_frames, tmp_path):
    """As in pipeline_wan_i2v.py; twice, because nothing is kept of a call."""
    library = VAES[name]()
    library.save_pretrained(tmp_path)
    vae = VideoVae(tmp_path)
    shape = (num_frames, 2 * pixels, 4 * pixels, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        encoded = library.encode((frames.float() / 127.5 - 1).permute(3, 0, 1, 2)[None]).latent_dist.mode()[0]
    mean, std = (torch.tensor(getattr(library.config, f"latents_{it}")).view(-1, 1, 1, 1) for it in ("mean", "std"))
    expected = ((encoded - mean) / std).transpose(0, 1)
    assert expected.shape == (1 + (num_frames - 1) // 4, 4, 2, 4) and expected.std() > 0.05
    for _ in range(2):
        torch.testing.assert_close(vae.encode(frames), expected, rtol=1e-5, atol=1e-5)


def test_a_vae_that_cannot_encode_says_so(tmp_path):
    VAES["hunyuan"]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot encode given frames; AutoencoderKLWan can"):
        VideoVae(tmp_path).encode(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


# ---------------------------------------------------------------------- chunk by chunk


@pytest.mark.parametrize("name", ["wan", "wan22"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 2), (1, 4), (5,)])
def test_frames_that_stream_out_are_those_decoded_at_once(name, sizes, tmp_path):
    VAES[name]().save_pretrained(tmp_path)
    vae = VideoVae(tmp_path)
    latents = torch.randn(5, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    stream = vae.stream()
    parts = [stream(part) for part in latents.split(sizes)]
    assert [len(part) for part in parts] == [4 * size - 3 * (place == 0) for place, size in enumerate(sizes)]
    distance = np.abs(np.concatenate(parts).astype(int) - vae.decode(latents).astype(int))
    assert distance.max() <= 1 and (distance > 0).mean() < 1e-3  # a pixel halfway between two values may round apart


def test_streams_do_not_disturb_each_other(tmp_path):
    VAES["wan"]().save_pretrained(tmp_path)
    vae = VideoVae(tmp_path)
    draw = torch.Generator().manual_seed(1)
    videos = [torch.randn(4, 4, 2, 4, generator=draw) for _ in range(2)]
    alone = [vae.decode(video) for video in videos]
    streams = [vae.stream(), vae.stream()]
    parts = [[streams[i](videos[i][first : first + 2]) for i in range(2)] for first in (0, 2)]
    for i in range(2):
        assert np.array_equal(np.concatenate([part[i] for part in parts]), alone[i])
    assert not np.array_equal(alone[0], alone[1])


@pytest.mark.parametrize("name", ["wan", "wan22"])
@pytest.mark.parametrize("num_before", range(5))
def test_a_stream_that_is_restored_from_a_file_goes_on_bit_by_bit(name, num_before, tmp_path):
    VAES[name]().save_pretrained(tmp_path)
    vae = VideoVae(tmp_path)
    latents = torch.randn(5, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    stream, restored = vae.stream(), vae.stream()
    if num_before:
        stream(latents[:num_before])
        restored(latents[3:])  # of another video, to be forgotten
    save_file({key: tensor.contiguous() for key, tensor in stream.state().items()}, tmp_path / "state.safetensors")
    restored.restore(load_file(tmp_path / "state.safetensors"))
    assert np.array_equal(restored(latents[num_before:]), stream(latents[num_before:]))


def test_the_state_of_a_stream_has_features_and_markers(tmp_path):
    """The library marks convolutions over time that get their first features with the next latent frame."""
    VAES["wan"]().save_pretrained(tmp_path)
    stream = VideoVae(tmp_path).stream()
    assert stream.state() == {}
    kinds = []
    for _ in range(2):
        stream(torch.zeros(1, 4, 2, 2))
        kinds.append({name.partition(".")[0] for name in stream.state()})
    assert kinds == [{"feature", "marker"}, {"feature"}]


def test_a_state_stays_as_it_is_while_its_stream_goes_on(tmp_path):
    VAES["wan"]().save_pretrained(tmp_path)
    draw = torch.Generator().manual_seed(1)
    first, second, third = (torch.randn(1, 4, 2, 4, generator=draw) for _ in range(3))
    vae = VideoVae(tmp_path)
    streams = [vae.stream() for _ in range(3)]
    streams[0](first)
    state = streams[0].state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    for stream in streams[1:]:
        stream.restore(state)
    assert not np.array_equal(streams[1](second), streams[2](third))
    streams[0](third)
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["feature.1000000", "feature.99", "total", "feature.01", "marker.-1"])
def test_a_state_of_another_decoder_is_refused(name, tmp_path):
    VAES["wan"]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"'{name}' is no state of this VAE, whose [0-9]+ convolutions"):
        VideoVae(tmp_path).stream().restore({name: torch.zeros(1)})


def test_without_what_went_before_a_chunk_would_look_different(tmp_path):
    VAES["wan"]().save_pretrained(tmp_path)
    vae = VideoVae(tmp_path)
    latents = torch.randn(4, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    stream = vae.stream()
    stream(latents[:2])
    after, anew = stream(latents[2:]), vae.stream()(latents[2:])
    assert (len(after), len(anew)) == (8, 5)
    assert np.abs(after[-4:].astype(int) - anew[-4:].astype(int)).mean() > 1


def test_a_vae_that_cannot_stream_says_so(tmp_path):
    VAES["hunyuan"]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="decodes whole videos only; AutoencoderKLWan decodes chunk by chunk"):
        VideoVae(tmp_path).stream()


def test_a_stream_refuses_latents_of_another_model(tmp_path):
    VAES["wan"]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"this VAE decodes \[frames, 4, rows, columns\]"):
        VideoVae(tmp_path).stream()(torch.zeros(1, 16, 2, 2))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("version", ["0.35.2", "1.0.0"])
def test_other_versions_of_the_library_are_refused(version, tmp_path, monkeypatch):
    import diffusers

    VAES["wan"]().save_pretrained(tmp_path)
    monkeypatch.setattr(diffusers, "__version__", version)
    message = f"needs diffusers 0.36 or newer and below 1.0; installed is {version}"
    with pytest.raises(ConfigError, match=message):
        VideoVae(tmp_path)


def test_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    VAES["wan"]().save_pretrained(tmp_path)
    asked = watch_network(monkeypatch)
    VideoVae(tmp_path).decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ConfigError, match="Wan-AI/Wan2-Diffusers is not a VAE"):
        VideoVae(Path("Wan-AI/Wan2-Diffusers"))
    assert asked == []


def test_without_the_library_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"needs the library diffusers .*pip install 'pagedvid\[vae\]'"):
        VideoVae(tmp_path)


@pytest.mark.parametrize("name", VAES)
def test_missing_weights_are_named_and_never_made_up(name, tmp_path):
    VAES[name]().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    gone = "decoder.conv_in.weight" if name != "hunyuan" else "decoder.conv_in.conv.weight"
    del tensors[gone]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"lack {gone}"):
        VideoVae(tmp_path)


def test_folders_without_weights_are_refused(tmp_path):
    VAES["wan"]().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        VideoVae(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is not a VAE"), ("{}", "is not a VAE"), ('{"_class_name": "UNet"}', "holds a UNet; allowed are")],
)
def test_other_folders_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        VideoVae(tmp_path)


@pytest.mark.parametrize("how", SPOILED_FILES)
@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_what_stands_in_a_file_s_place_is_named(name, how, tmp_path):
    VAES["wan"]().save_pretrained(tmp_path)
    spoil, message = SPOILED_FILES[how]
    spoil(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"{name} {message}"):
        VideoVae(tmp_path)


WEIGHTS = spoiled_weights("decoder.conv_in.weight")


@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_that_are_no_numbers_are_refused(how, tmp_path):
    VAES["wan"]().save_pretrained(tmp_path)
    spoil, message = WEIGHTS[how]
    spoil(tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ConfigError, match=message):
        VideoVae(tmp_path)
