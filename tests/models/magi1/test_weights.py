"""From a published layout to videos: configuration files, checkpoints, captions, given frames, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.cache.window import Window
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError, PromptError
from pagedvid.models.magi1.conditioning import read_captions, read_prefix
from pagedvid.models.magi1.network import MagiNetwork
from pagedvid.models.magi1.pipeline import MagiModel, frames_of
from pagedvid.models.magi1.spec import PUBLISHED, FrameConfig, MagiConfig, NetworkConfig, SamplingConfig
from pagedvid.models.magi1.weights import config_of, load_magi
from tests.models.magi1.recordings import DATA, FRAMES_A, NETWORK_A, ROLLOUTS, engine_of, play, recorded_model
from tests.models.specs import load_model, spec_of

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """tiny("magi-1-24b", "pt") -> folder of a tiny checkpoint."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_tiny_checkpoint

    def make(name: str, layout: str = "shards") -> Path:
        folder = tmp_path / f"{name}-{layout}"
        make_tiny_checkpoint.write(make_tiny_checkpoint.MAKERS[name](name, 0), folder, layout)
        return folder

    return make


def load(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> MagiModel:
    model = load_model(name, folder, dtype)
    assert isinstance(model, MagiModel)
    return model


@pytest.mark.parametrize("layout", ["shards", "safetensors", "pt"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_variant_makes_videos_from_its_layout(name: str, layout: str, tiny):
    folder = tiny(name, layout)
    model = load(name, folder)
    assert model.config.sampling == PUBLISHED[name].sampling
    engine = engine_of(model, None if "distill" in name else 8)
    request = VideoRequest("a", "a cat", 5, inputs={"embeddings": str(folder / "inputs" / "captions.safetensors")})
    engine.submit(request)
    video = play(engine).final["a"]
    assert video.shape == (4, 5, 4, 6) and bool(torch.isfinite(video).all())
    assert engine.cache.pool.num_used_pages == 0


def test_the_tool_writes_what_it_says(tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    import make_tiny_checkpoint

    monkeypatch.setattr(sys, "argv", ["make_tiny_checkpoint.py", "magi-1-24b", str(tmp_path / "x"), "--seed", "4"])
    make_tiny_checkpoint.main()
    assert "magi-1-24b, tiny and random" in capsys.readouterr().out
    files = {str(file.relative_to(tmp_path / "x")) for file in (tmp_path / "x").rglob("*") if file.is_file()}
    shards = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert files == {*shards, "model.safetensors.index.json", "config.json", "inputs/captions.safetensors"}
    assert load("magi-1-24b", tmp_path / "x").config.network.half_channel_vae


def test_the_parts_that_stay_in_float32_do(tiny):
    network = load("magi-1-4.5b", tiny("magi-1-4.5b"), torch.bfloat16).network
    names = {name for name, parameter in network.named_parameters() if parameter.dtype == torch.float32}
    kept = ("x_embedder", "t_embedder", "y_embedder", "rope.bands", "final_linear", "final_layernorm", "post_norm")
    for name, parameter in network.named_parameters():
        is_kept = any(part in name for part in kept) or "q_layernorm." in name or "k_layernorm." in name
        assert (name in names) == is_kept, (name, parameter.dtype)


PARAMETERS = {"magi-1-4.5b": 4.5e9, "magi-1-24b": 24e9}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes_have_the_published_number_of_parameters(name: str):
    with torch.device("meta"):
        network = MagiNetwork(PUBLISHED[name].network)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(PARAMETERS[name], rel=0.1)


def test_published_geometry():
    assert vars(spec_of("magi-1-4.5b").geometry) == {
        "num_layers": 34, "num_query_heads": 24, "num_kv_heads": 8, "head_dim": 128, "tokens_per_frame": 2025,
        "frames_per_chunk": 6, "branches": ("cond",),
    }  # fmt: skip
    large = spec_of("magi-1-24b-distill").geometry
    assert (large.num_layers, large.num_query_heads, large.tokens_per_frame) == (48, 48, 3600)
    schedule = spec_of("magi-1-4.5b").schedule(60, None, Window(1, 4))
    assert schedule.num_commits == 9


def test_a_configuration_file_beside_the_weights_is_heeded(tmp_path: Path):
    content = {
        "model_config": {"num_layers": 3, "model_name": "videodit_ardf"},
        "runtime_config": {
            "video_size_h": 480,
            "video_size_w": 832,
            "window_size": 1,
            "noise2clean_kvrange": [9, 9, 9, 9],
        },
        "engine_config": {"distill": True, "kv_offload": True},
    }
    (tmp_path / "4.5B_config.json").write_text(json.dumps(content))
    config = config_of("magi-1-4.5b", tmp_path / "weights.safetensors")
    assert config.network == replace(NetworkConfig(), num_layers=3)
    assert (config.frames.latent_height, config.frames.latent_width) == (60, 104)
    assert config.sampling == replace(SamplingConfig(), window_size=1, noise2clean_kvrange=(9,) * 4, distill=True)
    assert config_of("magi-1-4.5b", None) == PUBLISHED["magi-1-4.5b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json cannot be read as JSON"),
        ("[]", "is not a configuration of MAGI-1"),
        ('{"model_config": {"num_query_groups": 7}}', "groups must divide the heads"),
        ('{"model_config": {"kv_channels": 64}}', "do not make hidden_size 3072"),
        ('{"runtime_config": {"video_size_h": 723}}', "video_size_h is 723; it must be a multiple of 16"),
        ('{"runtime_config": {"video_size_h": 728}}', "latent_height is 91; it must be even"),
        ('{"runtime_config": {"video_size_w": 16}}', "latent_width is 2; it must be even and at least 4"),
        ('{"runtime_config": {"chunk_width": 0}}', "chunk_width is 0"),
        ('{"runtime_config": {"window_size": 0}}', "window_size is 0"),
        ('{"runtime_config": {"cfg_number": 2}}', "cfg_number is 2; allowed are 1 and 3"),
        ('{"runtime_config": {"noise2clean_kvrange": [5, 4]}}', r"noise2clean_kvrange \(5, 4\)"),
        ('{"runtime_config": {"clean_chunk_kvrange": -1}}', "clean_chunk_kvrange is -1"),
        ('{"engine_config": {"shortcut_mode": "16"}}', "shortcut_mode is '16'"),
    ],
)
def test_configurations_that_cannot_run_are_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        config_of("magi-1-4.5b", tmp_path)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (6, 9), (2, 8), (6, 2), (0, 8)])
def test_frames_need_two_rows_and_columns_of_whole_patches(height: int, width: int):
    with pytest.raises(ConfigError, match="it must be even and at least 4"):
        FrameConfig(height, width)


def test_incomplete_and_foreign_checkpoints_are_named(tmp_path: Path):
    config = MagiConfig("magi-1-tiny", NETWORK_A, FRAMES_A, SamplingConfig())
    weights = load_file(DATA / "weights_a.safetensors")
    del weights["videodit_blocks.layers.1.self_attention.linear_qkv.qx.weight"]
    save_file({**weights, "videodit_blocks.layers.9.mlp.linear_fc1.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"missing keys .*layers.1.*qx.weight; surplus keys .*layers.9.*fc1"):
        load_magi(config, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"weights of another model: .* instead of"):
        load_magi(config, DATA / "weights_b.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ships without weights: give --weights PATH"),
        ({"weights": Path("w"), "vae": Path("v")}, "a VAE of its own that no library here has"),
        ({"weights": Path("/nowhere/w.safetensors")}, "w.safetensors is missing"),
    ],
)
def test_parts_that_are_missing_or_have_no_use(options: dict[str, Path], message: str):
    with pytest.raises(ConfigError, match=message):
        load_model("magi-1-4.5b", **options)


# ---------------------------------------------------------------------- captions and given frames


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_captions_are_cut_to_their_mask():
    one = read_captions({"embeddings": rows(9, 32), "mask": torch.tensor([1] * 4 + [0] * 5)}, NETWORK_A)
    assert [caption.shape for caption in one] == [(4, 32)]
    several = read_captions({"embeddings": rows(3, 9, 32)}, NETWORK_A)
    assert [caption.shape for caption in several] == [(9, 32)] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds nothing; expected embeddings and mask only"),
        ({"embeddings": rows(4, 32), "prompt": rows(1)}, "holds embeddings, prompt; expected"),
        ({"embeddings": rows(4, 33)}, r"embeddings are \[4, 33\]; expected \[L, 32\]"),
        ({"embeddings": rows(32)}, r"embeddings are \[32\]"),
        ({"embeddings": rows(0, 32)}, r"embeddings are \[0, 32\]"),
        ({"embeddings": rows(65, 32)}, "65 caption rows; at most 64 fit"),
        ({"embeddings": rows(4, 32) * torch.nan}, "NaN or infinity"),
        ({"embeddings": rows(4, 32), "mask": torch.ones(5)}, r"mask is \[1, 5\]; expected \[1, 4\]"),
        ({"embeddings": rows(4, 32), "mask": torch.tensor([0, 1, 1, 0])}, "ones followed by zeros"),
        ({"embeddings": rows(4, 32), "mask": torch.zeros(4)}, "not all zeros"),
    ],
)
def test_caption_files_that_do_not_fit_are_refused(content: dict[str, torch.Tensor], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        read_captions(content, NETWORK_A)
    save_file(content, tmp_path / "caption.safetensors")
    with pytest.raises(ConfigError, match=message):
        read_captions(tmp_path / "caption.safetensors", NETWORK_A)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    (tmp_path / "caption.safetensors").write_bytes(b"no tensors")
    for file, message in (
        ("caption.safetensors", "caption file .*caption.safetensors cannot be read"),
        ("absent.safetensors", "caption file cannot be read: .*absent.safetensors is missing"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_captions(tmp_path / file, NETWORK_A)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_embeddings_and_latents_that_are_codes_are_refused(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ConfigError, match=f"embeddings holds {name}; allowed are float64, float32"):
        read_captions({"embeddings": torch.ones(9, 32).to(dtype)}, NETWORK_A)
    shape = (NETWORK_A.latent_channels, 2, FRAMES_A.latent_height, FRAMES_A.latent_width)
    with pytest.raises(ConfigError, match=f"latents holds {name}; allowed are float64, float32"):
        read_prefix({"latents": torch.ones(shape).to(dtype)}, NETWORK_A, FRAMES_A)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frames": rows(1)}, "holds no latents"),
        ({"latents": rows(4, 2, 6, 9)}, r"latents of \[4, 2, 6, 9\]; expected latents \[4, frames, 6, 8\]"),
        ({"latents": rows(4, 0, 6, 8)}, r"latents of \[4, 0, 6, 8\]"),
        ({"latents": rows(4, 1, 6, 8) / 0}, "NaN or infinity"),
    ],
)
def test_prefix_files_that_do_not_fit_are_refused(content: dict[str, torch.Tensor], message: str):
    with pytest.raises(ConfigError, match=message):
        read_prefix(content, NETWORK_A, FRAMES_A)


def test_a_prompt_without_embeddings_and_unknown_inputs_are_refused():
    model = recorded_model(ROLLOUTS["w1"])
    with pytest.raises(PromptError, match=r"no embeddings for the prompt 'a cat'.* or set model.text_encoder"):
        model.prepare("a cat", {}, 3)
    with pytest.raises(ConfigError, match="takes the inputs embeddings, prefix, not camera"):
        model.prepare("a cat", {"camera": "c.json"}, 3)


def test_the_last_caption_holds_for_all_later_chunks():
    model = recorded_model(ROLLOUTS["w1"])
    condition = model.prepare("", {"embeddings": {"embeddings": rows(2, 5, 32)}}, 30)
    assert condition.caption(0) is not condition.caption(1)
    assert condition.caption(7) is condition.caption(1)


def test_noise_depends_on_seed_and_chunk_only():
    model = MagiModel(ROLLOUTS["w1"].config, recorded_model(ROLLOUTS["w1"]).network)
    condition = model.prepare("", ROLLOUTS["w1"].inputs, 3)
    noise = model.initial_latents(condition, 5, 2)
    assert torch.equal(noise, model.initial_latents(condition, 5, 2))
    assert frames_of(noise, FRAMES_A).shape == (4, 3, 6, 8)
    for other in ((5, 3), (6, 2), (2, 5)):
        assert not torch.equal(noise, model.initial_latents(condition, *other))


def test_without_transformers_the_message_says_what_to_do(tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the library transformers .* embeddings in a file"):
        load_model("magi-1-4.5b", tiny("magi-1-4.5b"), text_encoder=tmp_path, prompts=("a cat",))
