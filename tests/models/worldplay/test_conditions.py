"""What a request brings beside its prompt, and what is refused before anything runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pagedvid.errors import ConfigError
from pagedvid.models.worldplay.conditions import image_grid, states
from tests.models.worldplay.recordings import VARIANTS, inputs, text_inputs
from tests.models.worldplay.rollout import make_engine, make_model, request
from tests.models.worldplay.test_trajectory import recorded_file


def prepared(variant, **changed):
    given = {**request(variant).inputs, **changed}
    return make_model(variant).prepare("", {name: x for name, x in given.items() if x is not None}, 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_give_the_same_as_tensors(variant, tmp_path):
    save_file(inputs(variant), tmp_path / "embeddings.safetensors")
    from_files = prepared(
        variant, trajectory=str(recorded_file(tmp_path)), embeddings=str(tmp_path / "embeddings.safetensors")
    )
    expected = prepared(variant)
    assert torch.equal(from_files.actions_F, expected.actions_F)
    assert torch.equal(from_files.image_nC, expected.image_nC)
    assert torch.equal(from_files.cameras.views_F44, expected.cameras.views_F44)
    if variant == "hy8b":
        assert all(torch.equal(a, b) for a, b in zip(from_files.text.keys, expected.text.keys, strict=True))
    else:
        assert torch.equal(from_files.text, expected.text)


def test_padding_rows_of_the_8b_do_not_count():
    changed = {name: x.clone() for name, x in inputs("hy8b").items()}
    changed["prompt_embeds"][0, 6:] = 9.0
    changed["byt5_states"][0, 3:] = 9.0
    assert torch.equal(prepared("hy8b", embeddings=changed).text.keys[2], prepared("hy8b").text.keys[2])
    assert len(text_inputs().prompt_nC) == 6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trajectory": None}, "missing: trajectory, unknown: none"),
        ({"embeddings": None}, "missing: embeddings, unknown: none"),
        ({"image": 1}, "missing: none, unknown: image"),
        ({"embeddings": {}}, "the embeddings lack"),
        ({"embeddings": "nowhere.safetensors"}, "embeddings cannot be read: nowhere.safetensors is missing"),
    ],
)
def test_missing_and_unknown_inputs_are_named(variant, changed, message):
    with pytest.raises(ConfigError, match=message):
        prepared(variant, **changed)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("prompt_embeds", lambda x: x[..., :3], r"prompt_embeds has shape .*; this model takes \[1, rows, 20\]"),
        ("prompt_embeds", lambda x: x * torch.nan, "prompt_embeds has NaN or infinite values"),
        ("image", lambda x: x[..., :2], r"has shape .*; this model and resolution take \[1, "),
    ],
)
def test_embeddings_must_fit(variant, name, change, message):
    name = make_model(variant).image_name if name == "image" else name
    with pytest.raises(ConfigError, match=message):
        prepared(variant, embeddings={**inputs(variant), name: change(inputs(variant)[name])})


def test_a_mask_must_have_its_rows():
    changed = {**inputs("hy8b"), "byt5_mask": torch.ones(1, 4)}
    with pytest.raises(ConfigError, match=r"byt5_mask has shape \[1, 4\]; byt5_states has 5 rows"):
        prepared("hy8b", embeddings=changed)


@pytest.mark.parametrize("num_frames", [28, 33])
def test_the_trajectory_must_have_the_video_s_frames(num_frames):
    asked = replace(request("hy8b"), num_frames=num_frames)
    whole = 28 if num_frames == 28 else 36
    with pytest.raises(ConfigError, match=f"the trajectory has 32 frames, the video {whole} latent frames"):
        make_engine(make_model("hy8b")).submit(asked)


def test_the_distilled_wan_has_four_steps():
    with pytest.raises(ConfigError, match="num_denoise_steps is 3; hy-worldplay-5b was distilled to 4 steps"):
        make_engine(make_model("wan5b"), num_denoise_steps=3).submit(request("wan5b"))


def test_the_8b_takes_other_numbers_of_steps():
    engine = make_engine(make_model("hy8b"), num_denoise_steps=2)
    engine.submit(request("hy8b", num_frames=8))
    assert len([output.frames for output in engine.run()]) == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_states_that_are_codes_are_refused(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ConfigError, match=f"a holds {name}; allowed are float64, float32"):
        states({"a": torch.ones(1, 3, 4).to(dtype)}, "a", 4)
    with pytest.raises(ConfigError, match=f"a holds {name}; allowed are float64, float32"):
        image_grid({"a": torch.ones(1, 4, 1, 2, 2).to(dtype)}, "a", 4, 2, 2)
