"""docs/engines.md: what a session needs, from the sizes that an adapter computes and from `pagedvid capacity`."""

from __future__ import annotations

import json
import re
import shlex
from types import SimpleNamespace

import pytest
import yaml

from pagedvid.cli.main import main
from pagedvid.integrations.vllm_omni.geometry import SessionGeometry
from pagedvid.integrations.vllm_omni.settings import PagedSettings
from tests.docs.pages import DOCS, code_blocks, tables

PAGE = (DOCS / "engines.md").read_text(encoding="utf-8")
CACHES = {"its own BF16": "bf16", "int4 pages": "int4", "int2 pages": "int2"}
FRAME_BYTES = 1560 * 40 * 40 * 128 * 2 * 2


def session_bytes(codecs: str) -> int:
    asked = SimpleNamespace(
        num_layers=40,
        num_kv_heads=40,
        head_size=128,
        tokens_per_frame=30 * 52,
        frames_per_block=3,
        max_scratch_tokens_per_branch=0,
        reset_at_boundary=False,
        kv_branches=(SimpleNamespace(name="main", local_index=0),),
    )
    geometry = SessionGeometry.of(asked, SimpleNamespace(window_chunks=9, sink_chunks=9, reset_at_boundary=False))
    return geometry.page_bytes(geometry.cache_spec(PagedSettings.read({"pagedvid": {"codecs": codecs}})))


def sessions_in_80_gb(history_bytes: int, once_bytes: int = 0) -> tuple[int, int]:
    """Without and with what the pipeline keeps besides; tests/engines compares these two figures with the pipeline."""
    besides = re.search(r"announces ([\d.]+) GiB of its own for each session.*takes ([\d.]+) GiB;", PAGE, re.DOTALL)
    assert besides is not None
    whole = history_bytes + int((float(besides[1]) + float(besides[2])) * 2**30)
    return (80 * 10**9 - once_bytes) // history_bytes, (80 * 10**9 - once_bytes) // whole


@pytest.mark.parametrize("codecs", ["bf16", "int4", "int2"])
def test_bytes_of_pages(codecs):
    row = re.search(rf"\| pages in {codecs} \| ([\d.]+) GiB \| (\d+) \| (\d+) \|", PAGE)
    needed = session_bytes(codecs)
    assert row is not None
    assert row[1] == f"{needed / 2**30:.2f}"
    assert (int(row[2]), int(row[3])) == sessions_in_80_gb(needed)


def test_bytes_of_its_own_pool():
    """Its `ARDiffusionKVCache`: sinks and window of a session; once a block, two of the manager, and scratch."""
    row = re.search(r"\| vLLM-Omni.*\| ([\d.]+) GiB, and ([\d.]+) GiB for all together \| (\d+) \| (\d+) \|", PAGE)
    each, once = 18 * FRAME_BYTES, (3 + 2 + 3) * FRAME_BYTES
    assert row is not None
    assert (row[1], row[2]) == (f"{each / 2**30:.2f}", f"{once / 2**30:.2f}")
    assert (int(row[3]), int(row[4])) == sessions_in_80_gb(each, once)


def test_the_settings_of_the_stage_can_be_read():
    first = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert first is not None
    stage = yaml.safe_load(first[1])["stages"][0]
    settings = PagedSettings.read(stage["model_config"])
    assert str(settings.codecs.history) == "int2" and (settings.memory, settings.sessions) == (60 << 30, 5)
    assert 5 * (session_bytes("int2") + 8 * 2**30) < 60 << 30


def test_streams_are_what_the_commands_say(capsys):
    said: dict[str, list[tuple[str, str]]] = {codec: [] for codec in CACHES.values()}
    commands = "".join(code_blocks(DOCS / "engines.md", "bash"))
    for command in re.findall(r"^pagedvid (capacity [^#\n]*)", commands, re.MULTILINE):
        assert main([*shlex.split(command), "--format", "json"]) == 0
        for row in json.loads(capsys.readouterr().out)["rows"]:
            said[row["codec"]].append((f"{row['stream_bytes'] / 2**30:.2f}", str(row["num_streams"])))
    (table,) = (table for table in tables(DOCS / "engines.md") if any(row.endswith(": int2 pages") for row in table))
    shown: dict[str, list[tuple[str, str]]] = {codec: [] for codec in CACHES.values()}
    for name, row in table.items():
        shown[CACHES[name.partition(": ")[2]]].append((row["GiB a stream"], row["streams that fit"]))
    assert shown == said and len(shown["int2"]) == 2
