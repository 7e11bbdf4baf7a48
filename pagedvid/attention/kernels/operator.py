"""`torch.ops.pagedvid.paged_attention`: the fused kernel as an operator that torch.compile keeps whole.

It returns new tensors instead of writing into given ones, so that a compiled graph may reorder it; its fake
implementation gives their shapes without running anything. Importing this file registers the operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.attention.kernels.paged_attention import paged_attention
from pagedvid.attention.kernels.work import PageBias, PagedWork, Tiling
from pagedvid.codecs.base import make_codec
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ConfigError
from pagedvid.rotary.axis_tables import AngleTables


def _layout(page: PageFormat, name: str) -> PageLayout:
    layout = make_codec(read_codec(name), page).kernels(torch.device("cpu")).fused_layout
    if layout is None:
        raise ConfigError(f"the fused kernel cannot read pages of {name}")
    return layout


@torch.library.custom_op("pagedvid::paged_attention", mutates_args=())
def paged_attention_operator(
    q_THD: Tensor,
    records: Tensor,
    pages: Tensor,
    segments: Tensor,
    ranges: Tensor,
    blocks: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    axes: Tensor | None,
    frame_tokens: int,
    width: int,
    alpha: Tensor | None,
    variance: Tensor | None,
    group: int,
    scale: float,
    codecs: str,
    bias: str,
    rotates: bool,
    block_rows: int,
) -> tuple[Tensor, Tensor]:
    """(out float32 [T, Hq, D], lse [T, Hq]) over history alone; arguments as `paged_attention`, `PagedWork`,
    `AngleTables`, `PageBias`.

    `codecs`: of keys and values, such as "int4/int2"; `bias`: "off", "step_sizes" or "variance"; `block_rows`: rows of
    each of `blocks`.
    """
    head_dim = q_THD.shape[2]
    page = PageFormat(head_dim, records.shape[1] // head_dim)
    key_codec, value_codec = codecs.split("/")
    out = torch.empty(q_THD.shape, dtype=torch.float32, device=q_THD.device)
    lse = torch.empty(q_THD.shape[:2], dtype=torch.float32, device=q_THD.device)
    angles = None if cos is None or sin is None or axes is None else AngleTables(cos, sin, axes, frame_tokens, width)
    paged_attention(
        q_THD,
        out,
        lse,
        records,
        (_layout(page, key_codec), _layout(page, value_codec)),
        PagedWork(pages, segments, ranges, blocks, group, Tiling(block_rows)),
        scale,
        angles=angles,
        bias=None if bias == "off" else PageBias(bias, rotates, alpha, variance),
    )
    return out, lse


@paged_attention_operator.register_fake
def _shapes(q_THD: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q_THD.new_empty(q_THD.shape, dtype=torch.float32), q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32)
