"""`pagedvid generate --plan`: numbers that the cache itself would give."""

from __future__ import annotations

import pytest

from pagedvid.cli.generate_plan import plan_lines
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.engine.protocol import ModelGeometry, ModelSpec
from pagedvid.engine.requests import VideoRequest
from pagedvid.models import build
from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk
from pagedvid.models.demo import weights as demo_weights

INT2 = Config(cache=CacheConfig(codec="int2"))
WAN = ModelGeometry(30, 12, 12, 128, tokens_per_frame=1560, frames_per_chunk=3)


def rows_of(lines):
    """Cells of the table by codec."""
    first = next(index for index, line in enumerate(lines) if line.startswith("codec "))
    table = lines[first + 1 : lines.index("", first)]
    return {line[:8].strip(): line[8:].split() for line in table}


def plan(config, model=WAN, num_frames=300):
    """Of a model that goes chunk by chunk."""

    def schedule(num_frames, num_denoise_steps, window):
        return chunk_by_chunk(model, num_frames, (1.0, 0.0), window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "model_spec", lambda config: ModelSpec(model, schedule, pytest.fail, writes_latents=False))
        spec = build.resolve(config)
    return plan_lines(spec, [VideoRequest("a", "red", num_frames), VideoRequest("b", "blue", 3)])


def test_a_wan_stream_in_24_gib():
    config = Config(cache=CacheConfig(codec="int2", correction="measured", memory="24GiB", recent_chunks=5))
    lines = plan(config)
    assert "chunk    3 frames = 4680 tokens = 37 pages of 128 per head and layer (1.2% padding)" in lines
    assert "videos   2; the longest has 300 frames = 100 chunks" in lines
    bits, pages, number, unit, ratio, fit = rows_of(lines)["as set"]
    assert int(pages) == 2 * 30 * 12 * 37 * 7  # keys and values; sink + 5 recent + the chunk being committed
    assert float(bits) == pytest.approx(2 * (37 * 128 / 4680) + 32 / 128 * (37 * 128 / 4680), abs=0.01)
    assert (number, unit) == ("819", "MiB")
    assert float(ratio) == pytest.approx(36 * 128 * 37 / (4680 * 128 * 2), abs=0.001)
    assert int(fit) == 24 * 2**30 // (36 * 128 * int(pages))


def test_every_codec_is_there_to_compare():
    rows = rows_of(plan(Config(cache=CacheConfig(codec="int4"))))
    assert list(rows) == ["as set", "klt1.5", "klt2", "int2", "int4", "int8", "bf16", "fp32"]
    assert rows["as set"] == rows["int4"]
    for column in (0, 4):  # bits per value, ratio to BF16: pages of klt have sizes of their own
        numbers = [float(cells[column]) for cells in rows.values()][1:]
        assert numbers == sorted(set(numbers))
    pages = [int(cells[1]) for cells in rows.values()][3:]
    assert pages == sorted(set(pages))


def test_a_klt_stream_of_wan():
    """3 frames are transformed together: 1560 blocks of 3 tokens, 43 in a page of 32 rows."""
    lines = plan(Config(cache=CacheConfig(codec="klt2", memory="24GiB", recent_chunks=5)))
    assert "chunk    3 frames = 4680 tokens = 37 pages of 129 per head and layer (1.9% padding)" in lines
    pages = 2 * 30 * 12 * 37 * 7
    cells = rows_of(lines)["as set"]
    assert int(cells[1]) == pages and int(cells[-1]) == 24 * 2**30 // (32 * 128 * pages)
    assert cells == rows_of(lines)["klt2"]
    assert float(cells[0]) == pytest.approx(16 * 37 * 32 / (4680 * 2), abs=0.01)


def test_pages_of_a_set_size():
    rows = rows_of(plan(Config(cache=CacheConfig(codec="klt2", page_rows=36))))
    assert int(rows["as set"][1]) == 2 * 30 * 12 * 33 * 6  # 48 blocks of 3 tokens in a page
    assert int(rows["klt1.5"][1]) == 2 * 30 * 12 * 37 * 6  # on pages of 24 rows, which suit it: 43 blocks


def test_keys_values_and_layers_apart():
    lines = plan(Config(cache=CacheConfig(codec="int4/int2", layer_codecs={"0-1": "bf16", 29: "int8/int2"})))
    assert "codecs   int4/int2, bf16 in layers 0 to 1, int8/int2 in layers 29 to 29" in lines
    assert "chunk    3 frames = 4680 tokens = 74 pages of 64 per head and layer (9.4% padding)" not in lines
    pages = 12 * (2 * 2 * 260 + 27 * (74 + 37) + 147 + 37)
    assert int(rows_of(lines)["as set"][1]) == 6 * pages


def test_codecs_by_role_are_named_and_counted():
    lines = plan(Config(cache=CacheConfig(codec="int2", sink_codec="int8", newest_codec="bf16")))
    assert "codecs   int2, sinks int8, newest chunk bf16" in lines
    pages = {name: int(cells[1]) for name, cells in rows_of(lines).items()}
    assert pages["int2"] < pages["as set"] < pages["bf16"]


def test_branches_double_a_stream():
    guided = ModelGeometry(30, 12, 12, 128, 1560, 3, branches=("cond", "uncond"))
    once, twice = rows_of(plan(INT2))["as set"], rows_of(plan(INT2, guided))["as set"]
    assert int(twice[1]) == 2 * int(once[1])
    assert twice[4] == once[4]


def test_a_short_video_takes_less_than_a_full_window():
    full, short = rows_of(plan(INT2))["as set"], rows_of(plan(INT2, num_frames=9))["as set"]
    assert int(short[1]) == 2 * 30 * 12 * 37 * 2 < int(full[1])


def test_videos_of_one_chunk_cache_nothing():
    assert rows_of(plan(INT2, num_frames=3))["as set"] == ["2.28", "0", "0", "B", "-", "any", "number"]


def test_through_the_command_line_without_weights_or_folder(command, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_weights, "load_demo", None)
    code, out, err = command("generate", "--prompts", prompts("red", "blue"), "--plan", "--frames", 48, "--kv", "int8")
    assert (code, err) == (0, "")
    assert out.startswith("model    demo: ")
    assert "codecs   int8\n" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "as set" in out and "klt2" in out
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]
