"""Windows of frames as windows of chunks; geometry; settings that do not fit together."""

from __future__ import annotations

import pytest

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.errors import ConfigError
from pagedvid.models.wan.base.spec import TransformerShape, window_in_chunks
from pagedvid.models.wan.causal.spec import WanCausalSettings
from pagedvid.models.wan.skyreels.spec import SkyReelsSettings


@pytest.mark.parametrize(
    ("frames_per_chunk", "sink_frames", "window_frames", "expected"),
    [
        (3, 0, 21, Window(0, 6)),  # Self-Forcing: 7 chunks with the current one
        (3, 3, 21, Window(1, 5)),
        (3, 9, 21, Window(3, 3)),
        (1, 3, 21, Window(3, 17)),  # frame by frame
        (3, 0, 6, Window(0, 1)),
        (5, 5, 25, Window(1, 3)),
    ],
)
def test_sinks_and_current_chunk_are_taken_off_a_window_of_frames(
    frames_per_chunk, sink_frames, window_frames, expected
):
    window = window_in_chunks(frames_per_chunk, sink_frames, window_frames, "absolute")
    assert window == expected
    assert (window.max_chunks + 1) * frames_per_chunk == window_frames


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"window_frames": 20}, ["window_frames is 20", "multiple of frames_per_chunk, 3", "18 or 21"]),
        ({"sink_frames": 1}, ["sink_frames is 1", "0 or 3"]),
        ({"sink_frames": -3}, ["sink_frames is -3"]),
        ({"sink_frames": 3, "window_frames": 6}, ["window_frames is 6", "9 or more"]),
        ({"window_frames": 3}, ["window_frames is 3", "6 or more"]),
        ({"sink_frames": 3, "window_frames": None}, ["sink_frames is 3", "window_frames is not set"]),
        ({"frames_per_chunk": 0}, ["frames_per_chunk is 0"]),
    ],
)
def test_settings_that_do_not_fit_say_what_would(changed, words):
    with pytest.raises(ConfigError) as caught:
        WanCausalSettings(**changed)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("guidance_scale", 0.0), ("num_denoise_steps", 0), ("shift", -1.0)])
def test_settings_of_skyreels_are_checked_too(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        SkyReelsSettings(**{name: value})


def test_without_a_window_of_its_own_the_configured_one_counts():
    configured = Window(2, 9)
    assert WanCausalSettings(window_frames=None).window(configured) == configured
    assert WanCausalSettings().window(configured) == Window(0, 6)
    assert SkyReelsSettings().window(configured) == Window(1, 3, "window")


def test_the_published_sizes():
    """Tokens per frame and branches as in the papers: 480 x 832 is 1560, 544 x 960 is 2040."""
    shape = TransformerShape(num_layers=30, num_heads=12, head_dim=128)
    assert shape.geometry(WanCausalSettings()) == ModelGeometry(30, 12, 12, 128, 1560, 3)
    settings = SkyReelsSettings()
    expected = ModelGeometry(30, 12, 12, 128, 2040, 5, ("cond", "uncond"))
    assert shape.geometry(settings, settings.branches) == expected
    assert SkyReelsSettings(guidance_scale=1.0).branches == ("cond",)


def test_a_frame_that_is_cut_by_patches_is_refused():
    with pytest.raises(ConfigError, match=r"61 x 104 positions.*multiple of 16 pixels"):
        TransformerShape(2, 2, 16).geometry(WanCausalSettings(latent_rows=61))
