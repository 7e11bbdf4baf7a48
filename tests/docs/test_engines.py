"""docs/engines.md: what a session of LingBot-World needs, from the sizes that its own adapter computes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import yaml

from pagedvid.integrations.vllm_omni.geometry import SessionGeometry
from pagedvid.integrations.vllm_omni.settings import PagedSettings
from tests.docs.pages import DOCS

PAGE = (DOCS / "engines.md").read_text(encoding="utf-8")
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
    geometry = SessionGeometry.of(asked, window_frames=9, sink_frames=9)
    return geometry.page_bytes(geometry.cache_spec(PagedSettings.read({"pagedvid": {"codecs": codecs}})))


@pytest.mark.parametrize("codecs", ["bf16", "int4", "int2"])
def test_bytes_of_pages(codecs):
    row = re.search(rf"\| pages in {codecs} \| ([\d.]+) GiB \| (\d+) \|", PAGE)
    needed = session_bytes(codecs)
    assert row is not None
    assert row[1] == f"{needed / 2**30:.2f}" and int(row[2]) == 80 * 10**9 // needed


def test_bytes_of_its_own_pool():
    """Its `ARDiffusionKVCache`: sinks and window of a session; once a block, two of the manager, and scratch."""
    row = re.search(
        r"\| vLLM-Omni's pool \(BF16\) \| ([\d.]+) GiB, and ([\d.]+) GiB for all together \| (\d+) \|", PAGE
    )
    each, once = 18 * FRAME_BYTES, (3 + 2 + 3) * FRAME_BYTES
    assert row is not None
    assert (row[1], row[2]) == (f"{each / 2**30:.2f}", f"{once / 2**30:.2f}")
    assert int(row[3]) == (80 * 10**9 - once) // each


def test_the_settings_of_the_stage_can_be_read():
    first = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert first is not None
    stage = yaml.safe_load(first[1])["stages"][0]
    settings = PagedSettings.read(stage["model_config"])
    assert str(settings.codecs.history) == "int2" and (settings.memory, settings.sessions) == (60 << 30, 12)
    assert 12 * session_bytes("int2") < 60 << 30
