"""What the kernels of attention, of channel codecs and of rotary embedding compute, in plain and slow PyTorch.

Axes: E ranges, S segments, H KV heads, G query heads per KV head, T tokens, n keys, P pages, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.base import make_codec
from pagedvid.codecs.channel.codec import ChannelCodec
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.raw.codec import RawCodec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.correction.formula import log_sinhc
from pagedvid.rotary.tables import pair_mean_square, rotate, to_half_layout


def codec_of(page: PageFormat, name: str) -> ChannelCodec | RawCodec:
    """The codec whose pages the kernels read and write."""
    codec = make_codec(read_codec(name), page)
    assert isinstance(codec, (ChannelCodec, RawCodec))
    return codec


def layout_of(page: PageFormat, name: str) -> PageLayout:
    """The page layout of that codec as kernels see it."""
    layout = codec_of(page, name).kernels(torch.device("cpu")).fused_layout
    assert layout is not None, f"no kernel reads pages of {name}"
    return layout


def decode(
    page: PageFormat,
    codec: str,
    records: Tensor,
    pages_HP: Tensor,
    num_tokens: int,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Tokens float32 [n, H, D], as `pagedvid.codecs.channel.kernels.decode.decode` returns them."""
    padded = read_codec(codec).padded_tokens(page, num_tokens)
    out = torch.empty(len(pages_HP), padded, page.head_dim, dtype=torch.float32, device=records.device)
    x_HnD = codec_of(page, codec).decode(records[pages_HP.long()], num_tokens, out)
    if angles is not None:
        x_HnD = rotate(x_HnD, *(table.float() for table in angles))
    return x_HnD.transpose(0, 1)


@dataclass(frozen=True)
class Segment:
    """One chunk that a range reads."""

    keys_HP: Tensor
    values_HP: Tensor
    num_tokens: int
    angles: tuple[Tensor, Tensor] | None = None
    """[n, D/2] each."""
    alpha: Tensor | None = None
    """[H]."""
    variance: Tensor | None = None
    """[H, D]. If given, the correction uses it instead of the step sizes."""


def paged_attention(
    page: PageFormat,
    codecs: tuple[str, str],
    records: Tensor,
    q_THD: Tensor,
    segments: list[Segment],
    scale: float,
    *,
    corrected: bool = True,
    rotates: bool = False,
) -> tuple[Tensor, Tensor]:
    """One range: (out float64 [T, Hq, D], lse [T, Hq]), every key corrected by the exact b of its own page."""
    num_kv_heads = len(segments[0].keys_HP)
    q = q_THD.double().unflatten(1, (num_kv_heads, -1))
    q_square = (pair_mean_square(q) if rotates else q.square()).double()
    scores, values = [], []
    for segment in segments:
        k_nHD = decode(page, codecs[0], records, segment.keys_HP, segment.num_tokens, segment.angles).double()
        score = scale * torch.einsum("thgd,nhd->thgn", q, k_nHD)
        if corrected and read_codec(codecs[0]).is_quantized:
            square_step_size = _square_step_sizes(page, codecs[0], records, segment)
            x = (scale / 2) * (q_square[:, :, :, None] * square_step_size.clamp(min=0)[None, :, None]).sqrt()
            lost = scale**2 / 24 * q_square[:, :, :, None] * square_step_size.clamp(max=0)[None, :, None]
            b_THGP = (log_sinhc(x) + lost).sum(-1)
            if segment.alpha is not None:
                b_THGP = b_THGP * segment.alpha.double()[:, None, None]
            of_key = torch.arange(segment.num_tokens) // read_codec(codecs[0]).page_tokens(page)
            score = score - b_THGP[..., of_key]
        scores.append(score)
        values.append(decode(page, codecs[1], records, segment.values_HP, segment.num_tokens).double())
    score = torch.cat(scores, dim=-1)
    out = torch.einsum("thgn,nhd->thgd", score.softmax(-1), torch.cat(values))
    return out.flatten(1, 2), score.logsumexp(-1).flatten(1)


def _square_step_sizes(page: PageFormat, codec: str, records: Tensor, segment: Segment) -> Tensor:
    """[H, P, D] float64."""
    num_pages = segment.keys_HP.shape[1]
    if segment.variance is not None:
        return 12 * segment.variance.double().unsqueeze(1).expand(-1, num_pages, -1)
    channel_codec = codec_of(page, codec)
    assert isinstance(channel_codec, ChannelCodec)
    return channel_codec.page_step_sizes(records[segment.keys_HP.long()]).double().square()


def encode(page: PageFormat, codec: str, x_nHD: Tensor) -> Tensor:
    """Records uint8 [H, P, page_bytes], as `pagedvid.codecs.channel.kernels.encode.encode` writes them."""
    return codec_of(page, codec).encode(x_nHD.transpose(0, 1).float())


def rotated(x_THD: Tensor, layout: str, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """x in half layout, rotated, as `pagedvid.rotary.kernels` returns it."""
    x = to_half_layout(x_THD, layout)
    if angles is None:
        return x
    return rotate(x.float(), *(table.float().unsqueeze(1) for table in angles)).to(x.dtype)
