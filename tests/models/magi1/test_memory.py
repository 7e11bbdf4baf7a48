"""Bytes per stream of the published sizes, by hand."""

from __future__ import annotations

import pytest

from pagedvid.cache.window import Window
from pagedvid.models.magi1.schedule import magi_schedule
from pagedvid.models.magi1.spec import PUBLISHED
from tests.models.magi1.memory import stream_bytes
from tests.models.magi1.recordings import ROLLOUTS, engine_of, recorded_model

GB = 1e9


@pytest.mark.parametrize(
    ("name", "seconds", "buffer_gb"),
    [("magi-1-4.5b", 10, 16.9), ("magi-1-4.5b", 60, 101.5), ("magi-1-24b", 10, 42.5), ("magi-1-24b", 60, 254.8)],
)
def test_the_original_keeps_the_whole_video_and_pages_the_look_back(name: str, seconds: int, buffer_gb: float):
    config = PUBLISHED[name]
    network, tokens = config.network, 6 * config.frames.tokens_per_frame
    tables = network.num_layers * 8
    bytes_ = stream_bytes(config, seconds, "bf16")
    assert bytes_.original_bytes / GB == pytest.approx(buffer_gb, rel=0.005)
    assert bytes_.stored_bytes == tables * -(-tokens // 18) * 2 * 36 * 128
    assert bytes_.ratio == pytest.approx(seconds, rel=0.01)
    two_bits = stream_bytes(config, seconds, "int2")
    assert two_bits.stored_bytes == tables * -(-tokens // 128) * 2 * 36 * 128
    assert stream_bytes(config, seconds, "int2", window_size=1).stored_bytes == 4 * two_bits.stored_bytes
    assert stream_bytes(config, 60, "int2") == stream_bytes(config, 60, "int2", num_steps=64)


def test_the_estimate_is_what_the_engine_reserves_and_uses():
    rollout = ROLLOUTS["w1"]
    model = recorded_model(rollout)
    engine = engine_of(model, rollout.num_steps, "int2")
    seconds = rollout.data["final"].shape[1] / model.frames_per_second
    expected = stream_bytes(rollout.config, seconds, "int2", num_steps=rollout.num_steps).stored_bytes
    engine.submit(rollout.request())
    engine.step()
    page = engine.cache.pool.page_bytes
    assert engine.cache.reserved_pages * page == expected
    list(engine.run())
    assert engine.cache.pool.peak_used_pages * page == expected
    schedule = magi_schedule(rollout.sampling, 3, rollout.num_steps, 18)
    assert model.schedule(model.prepare("", rollout.inputs, 18), 18, rollout.num_steps, Window(3, 9)).commits == (
        schedule.commits
    )
