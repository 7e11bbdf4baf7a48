"""Windows and sizes in vLLM-Omni's frames, as chunks, against its rule written out: sinks, and the last frames with
those being denoised."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pagedvid import ConfigError
from pagedvid.integrations.vllm_omni.geometry import SessionGeometry
from pagedvid.integrations.vllm_omni.settings import PagedSettings
from tests.integrations.vllm_omni.pipelines import Pipeline, kv_config


def geometry(**changes) -> SessionGeometry:
    return SessionGeometry.of(Pipeline(**changes).ar_diffusion_kv_cache_spec(), kv_config())


@pytest.mark.parametrize("sink_frames", [0, 2, 4])
@pytest.mark.parametrize("window_frames", [2, 4, 6, 10])
@pytest.mark.parametrize("num_committed", range(9))
def test_a_block_sees_the_frames_that_it_sees_there(window_frames, sink_frames, num_committed):
    frames = range(2 * (num_committed + 1))
    visible = [frame for frame in frames if frame < sink_frames or frame >= len(frames) - window_frames]
    expected = sorted({frame // 2 for frame in visible} - {num_committed})

    sizes = geometry(window_frames=window_frames, sink_frames=sink_frames)
    kept = sizes.window.live(num_committed)
    only = sizes.visible(num_committed)
    assert list(kept if only is None else only) == expected
    assert set(expected) <= set(kept)


def test_sizes():
    sizes = geometry()
    assert (sizes.block_tokens, sizes.num_streams) == (40, 2)
    spec = sizes.cache_spec(PagedSettings())
    blocks = 1 + 2 + 1  # a sink, two recent ones, and the one that is stored; each fills a part of an int2 page
    assert sizes.page_bytes(spec) == 2 * blocks * 2 * 2 * 2 * spec.shape.page_bytes


def test_settings_of_vllm_omni_come_before_what_the_pipeline_asks_for():
    asked = Pipeline().ar_diffusion_kv_cache_spec()
    sizes = SessionGeometry.of(asked, kv_config(window_chunks=10, sink_chunks=4))
    assert (sizes.window_blocks, sizes.sink_blocks) == (5, 2)
    with pytest.raises(ConfigError, match="reset_at_boundary"):
        SessionGeometry.of(asked, kv_config(reset_at_boundary=True))


def test_branches_that_never_meet_share_a_stream():
    both = (SimpleNamespace(name="cond", local_index=0), SimpleNamespace(name="uncond", local_index=0))
    assert geometry(kv_branches=both).num_streams == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_frames": 5}, "window_frames is 5; it must be a multiple of the 2 frames"),
        ({"sink_frames": 1}, "sink_frames is 1"),
        ({"max_scratch_tokens_per_branch": 3}, "3 action or state tokens"),
        ({"reset_at_boundary": True}, "reset_at_boundary"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        geometry(**arguments)
