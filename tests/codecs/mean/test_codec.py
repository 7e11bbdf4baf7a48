"""The codec without pages: what it stores is nothing, what it gives back is the mean."""

from __future__ import annotations

import pytest
import torch

from pagedvid.codecs.base import make_codec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ConfigError

MEAN_HD = torch.arange(24.0).view(3, 8)


def test_every_token_is_the_mean_of_its_head():
    codec = make_codec(read_codec("mean"), PageFormat(8), MEAN_HD)
    x_RnD = torch.randn(6, 5, 8)
    records = codec.encode(x_RnD)
    assert records.shape == (6, 0, 36 * 8) and records.dtype == torch.uint8
    out = torch.full((6, 7, 8), torch.nan)
    decoded = codec.decode(records, 5, out)
    assert torch.equal(decoded, MEAN_HD.repeat(2, 1).unsqueeze(1).expand(6, 5, 8)) and bool(out[:, 5:].isnan().all())


def test_sizes():
    spec, page = read_codec("mean"), PageFormat(8)
    assert (spec.num_pages(page, 128), spec.padded_tokens(page, 128), spec.table_bytes(page)) == (0, 128, 32)
    assert spec.needs_tables and spec.is_quantized and not spec.has_step_sizes


def test_means_of_other_heads_are_refused():
    with pytest.raises(ConfigError, match="the means are for head_dim 8; the cache has 16"):
        make_codec(read_codec("mean"), PageFormat(16), MEAN_HD)
