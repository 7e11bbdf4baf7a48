"""Pages that an earlier version wrote: today's codecs read them bit for bit, and write the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.tables_file import Calibration

RECORDED = load_file(Path(__file__).parents[1] / "data" / "pages" / "pages.safetensors")
NAMES = sorted(name.removeprefix("records.") for name in RECORDED if name.startswith("records."))
HEAD_DIM, FRAME_TOKENS, BLOCK_FRAMES = 32, 12, 3


def codec_of(name: str) -> Codec:
    tables = {key.removeprefix("tables."): x for key, x in RECORDED.items() if key.startswith("tables.")}
    calibration = Calibration("recorded", 1, 2, HEAD_DIM, FRAME_TOKENS, BLOCK_FRAMES, "", tables)
    spec = read_codec(name)
    page = PageFormat(HEAD_DIM, spec.page_rows, FRAME_TOKENS, BLOCK_FRAMES)
    return CodecBook(page, 2, calibration).codec(spec, "keys", 0, (0, 1))


def read(codec: Codec, records: Tensor) -> Tensor:
    buffer = torch.empty(2, records.shape[1] * codec.page_tokens, HEAD_DIM, dtype=torch.float32)
    return codec.decode(records, RECORDED["x"].shape[1], buffer)


def test_every_family_was_recorded():
    for family in ("fp32", "bf16", "int2", "int4-pair-s8", "token2", "hadamard2", "klt2"):
        assert any(name.startswith(family) for name in NAMES), family


@pytest.mark.parametrize("name", NAMES)
def test_recorded_pages_are_read(name: str):
    torch.testing.assert_close(
        read(codec_of(name), RECORDED[f"records.{name}"]), RECORDED[f"decoded.{name}"], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", [name for name in NAMES if f"steps.{name}" in RECORDED])
def test_step_sizes_of_recorded_pages_are_read(name: str):
    found = codec_of(name).mean_square_step_sizes(RECORDED[f"records.{name}"], RECORDED["x"].shape[1])
    torch.testing.assert_close(found, RECORDED[f"steps.{name}"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_are_written(name: str):
    """A transform sums products in the machine's order, so that a code or two may differ by one."""
    written, recorded = codec_of(name).encode(RECORDED["x"]), RECORDED[f"records.{name}"]
    assert written.shape == recorded.shape
    is_transformed = name.startswith(("klt", "hadamard"))
    assert int((written != recorded).sum()) <= (recorded.numel() // 500 if is_transformed else 0)
