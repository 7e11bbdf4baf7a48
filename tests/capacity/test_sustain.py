"""What a device sustains: the cards' work against the models' own schedules, and the arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pagedvid.cache.window import Window
from pagedvid.capacity import measure_rate
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.cards import Resolution
from pagedvid.capacity.look_back import SlidingLookBack
from pagedvid.capacity.measure_rate import measured_rate
from pagedvid.capacity.sizing import Question
from pagedvid.capacity.sustain import TokenRate, parse_rate, parse_speed, sustained, work
from pagedvid.engine.engine import Engine
from pagedvid.engine.pace import Work
from pagedvid.errors import ConfigError
from pagedvid.units import GIB
from tests.models.specs import spec_of


def question(name, **changes):
    card = find_card(name)
    return replace(Question(card, card.resolution, card.window, 80 * GIB, "bf16"), **changes)


RUNNABLE = """
    demo self-forcing krea-14b longlive-2-5b skyreels-v2-1.3b skyreels-v2-14b magi-1-4.5b magi-1-24b hy-worldplay-8b
    hy-worldplay-5b
"""
MODEL_OF_CARD = {"magi-1-24b": "magi-1-24b-distill"}
"""Of a model that was published in two kinds, the one whose steps the card has."""


@pytest.mark.parametrize("name", RUNNABLE.split())
def test_a_cards_work_is_that_of_the_models_schedule(name):
    """MAGI-1's clean pass runs a second time for the prompt's forward, which the card does not count: 1 of 97."""
    asked, spec = question(name), spec_of(MODEL_OF_CARD.get(name, name))
    geometry, size = spec.geometry, asked.card.frames_per_chunk
    schedule = spec.schedule(40 * size, None, Window(0, 6))
    by_model, by_card = Work.of(schedule, geometry.frames_per_chunk, geometry.tokens_per_frame), work(asked)
    assert by_card.denoise_tokens == pytest.approx(by_model.denoise_tokens, rel=0.02)
    assert by_card.commit_tokens == pytest.approx(by_model.commit_tokens, rel=0.02)


def test_shares_by_hand():
    """Self-Forcing at 16 frames per second is 4 latent frames of 1560 tokens: 4 denoise steps and a commit pass."""
    found = sustained(question("self-forcing"), 16.0, TokenRate(100_000, 50_000, "given"))
    assert found.stream_share == pytest.approx(4 * 1560 * (4 / 100_000 + 1 / 50_000))
    assert found.num_streams == 2
    assert found.fastest == pytest.approx(16 * 0.9 / found.stream_share)
    assert sustained(question("self-forcing"), found.fastest * 1.01, found.rate).num_streams == 0


def test_what_a_stream_costs_depends_on_frame_and_branches():
    rate, asked = TokenRate(1e6, 1e6, "given"), question("self-forcing")
    share = sustained(asked, 16.0, rate).stream_share
    assert sustained(replace(asked, num_branches=2), 16.0, rate).stream_share == pytest.approx(2 * share)
    assert sustained(replace(asked, resolution=Resolution(832, 960)), 16.0, rate).stream_share == pytest.approx(
        2 * share
    )
    assert sustained(asked, 8.0, rate).stream_share == pytest.approx(share / 2)


@pytest.mark.parametrize(("written", "speed"), [("16fps", 16), ("16", 16), (" 23.976 fps", 23.976), ("1000fps", 1000)])
def test_speeds(written, speed):
    assert parse_speed(written) == speed


@pytest.mark.parametrize(
    "written", ["", "fps", "0fps", "-1", "1e3", "1001", "16 hz", "nan", "\u0661\u0666fps", "9" * 5000]
)
def test_what_is_no_speed(written):
    with pytest.raises(ConfigError, match=r"is not a speed; write .* such as 16fps"):
        parse_speed(written)


def test_rates():
    assert parse_rate("20000") == TokenRate(20_000, 20_000, "given by --tokens-per-second")
    assert parse_rate("2.5/1000000000000") == TokenRate(2.5, 10**12, "given by --tokens-per-second")


@pytest.mark.parametrize("written", ["", "0", "5/", "/5", "5/0", "1/2/3", "many", "inf", "9" * 400])
def test_what_is_no_rate(written):
    with pytest.raises(ConfigError, match=r"is not a rate; write .* such as 20000/15000"):
        parse_rate(written)


def test_a_measured_rate_is_that_of_the_steps_it_counts(monkeypatch):
    """Every step takes two seconds by the engine's own account, so 4 chunks take 9 x 2 s: 8 denoise steps, a commit."""
    real = Engine.stats
    monkeypatch.setattr(
        Engine, "stats", lambda engine: replace(real(engine), step_seconds=2.0 * real(engine).num_steps)
    )
    seen = []
    asked = question("demo", look_back=SlidingLookBack(0, 1))
    rate = measured_rate(asked, progress=lambda done, total: seen.append((done, total)))
    assert rate.denoise_tokens_per_second == pytest.approx(4 * 128 * 9 / (9 * 2.0))
    assert rate.commit_tokens_per_second == rate.denoise_tokens_per_second
    assert seen[-1] == (12, 12)
    assert "4 streams on" in rate.source


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("self-forcing", {}, "self-forcing cannot be measured here .*weights.*; give --tokens-per-second"),
        ("lingbot-14b", {}, r"lingbot-14b cannot be measured here \(unknown model"),
        ("demo", {"resolution": Resolution(64, 64)}, r"it has \(6, 16, 1\) layers.*the question asks for \(6, 64, 1\)"),
        ("demo", {"num_branches": 2}, r"the question asks for \(6, 16, 2\)"),
        ("demo", {"look_back": SlidingLookBack(1, 99)}, "a window of 100 chunks would take too long; the most is 16"),
    ],
)
def test_what_cannot_be_measured_here(name, changes, message, monkeypatch):
    monkeypatch.setattr(measure_rate, "NUM_VIDEOS", 1)
    with pytest.raises(ConfigError, match=message):
        measured_rate(question(name, **changes))
