"""Everything that stores keys and values in the fidelity table, peers and pagedvid's codecs alike, behind one call.

Bits are those of a chunk as it would lie in memory: for pagedvid whole pages with their metadata and padding. Tables
that belong to the model and serve every stream (the KLT bases) are not part of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peers.kivi import kivi_keys, kivi_values
from peers.quant_videogen import quant_videogen
from peers.quarot import quarot
from peers.rtn import rtn
from peers.stored import Stored
from peers.turboquant import turboquant
from tensors import Sample
from torch import Tensor

from pagedvid.geometry import CODE_ROWS, PAGE_ROWS
from pagedvid.quant.blocks import BlockLayout
from pagedvid.quant.calibration import calibrate
from pagedvid.quant.codec import get_codec
from pagedvid.quant.hadamard import HadamardCodec
from pagedvid.quant.klt import KltCodec
from pagedvid.quant.token import TokenCodec

Store = Callable[[Tensor, int], Stored]
"""(x [H, n, D], layer) -> what comes back."""
QVG_SMALL_SPAN_RATIO = 36
"""Tokens per cluster in the paper's smallest span (9360 tokens, 256 clusters)."""


@dataclass(frozen=True)
class Scheme:
    """One row of the table."""

    name: str
    keys: Store
    values: Store
    keys_rotated: bool = False
    """Whether keys are stored after rotary embedding."""
    whole_span: bool = False
    """Whether all cached chunks are stored at once."""


def peer_schemes(span_tokens: int, head_dim: int) -> list[Scheme]:
    """The published quantizers. `span_tokens`: of all cached chunks together."""

    def both(name: str, function: Callable[..., Stored], **how: Any) -> Scheme:
        return Scheme(name, *[lambda x, layer: function(x, **how)] * 2, keys_rotated=True)

    few = max(2, span_tokens // QVG_SMALL_SPAN_RATIO)
    schemes = [both(f"RTN {bits} g{group}", rtn, bits=bits, group=group) for bits, group in ((2, 64), (2, 32), (4, 64))]
    schemes += [both(f"QuaRot {bits} g64", quarot, bits=bits, group=64) for bits in (2, 4)]
    schemes += [both(f"TurboQuant {bits}", turboquant, bits=bits) for bits in (2, 3)]
    for rotated, where in ((True, "post"), (False, "pre")):
        keys, values = partial(_call, kivi_keys, bits=2, group=64), partial(_call, kivi_values, bits=2, group=64)
        schemes.append(Scheme(f"KIVI2 {where}", keys, values, keys_rotated=rotated))
    for stages, block, grid in ((1, 64, "ternary"), (1, 64, "asymmetric"), (4, 16, "ternary")):
        store = partial(
            _call, quant_videogen, num_stages=stages, block=min(block, head_dim), grid=grid, num_clusters=min(few, 256)
        )
        name = f"QVG{'-Pro' if stages > 1 else ''} {'tern' if grid == 'ternary' else 'asym'}"
        schemes.append(Scheme(name, store, store, whole_span=True))
    return schemes


def own_schemes(head_dim: int) -> list[Scheme]:
    """pagedvid's codecs that need no calibration."""
    token = [TokenCodec(head_dim, 2, 64)]
    schemes = [Scheme(f"{name} channel", *[partial(_through_named_pages, name)] * 2) for name in ("int2", "int4")]
    schemes += [Scheme("token2 g64", *[partial(_through_pages, token)] * 2, keys_rotated=True)]
    schemes += [Scheme("hadamard2 g64", *[partial(_through_pages, [HadamardCodec(token[0])])] * 2, keys_rotated=True)]
    return schemes


def klt_scheme(
    layers: Sequence[Sequence[Sample]], page_blocks: int, page_rows: int, block_frames: int, name: str
) -> Scheme:
    """The transform codec, calibrated on other videos than those it is measured on. `layers[l]`: samples of layer l."""
    layout = BlockLayout(layers[0][0].tokens_per_frame, block_frames)
    keys, values = (
        [KltCodec(tables) for tables in calibrate(layers, kind, layout, page_blocks, page_rows)]
        for kind in ("keys", "values")
    )
    return Scheme(name, partial(_through_pages, keys), partial(_through_pages, values))


def _call(function: Callable[..., Stored], x_HnD: Tensor, layer: int, **how: Any) -> Stored:
    return function(x_HnD, **how)


def _through_pages(codecs: Sequence[Any], x_HnD: Tensor, layer: int) -> Stored:
    codec = codecs[layer % len(codecs)]
    records = codec.encode(x_HnD)
    tokens = records.shape[1] * (codec.tables.page_tokens if isinstance(codec, KltCodec) else _page_tokens(codec))
    out = torch.empty(len(x_HnD), tokens, x_HnD.shape[2])
    values = codec.decode(records, x_HnD.shape[1], out)
    change = codec.variance_change(records, x_HnD.shape[1])
    # Uniform rounding adds step^2 / 12 and is reported as steps; what loses variance has no steps.
    return Stored(values, 8 * records.numel() / x_HnD.numel(), 12 * change if bool((change >= 0).all()) else None)


def _page_tokens(codec: TokenCodec | HadamardCodec) -> int:
    return codec.page_tokens if isinstance(codec, TokenCodec) else codec.tokens.page_tokens


def _through_named_pages(name: str, x_HnD: Tensor, layer: int) -> Stored:
    codec, head_dim = get_codec(name), x_HnD.shape[2]
    records = codec.encode(x_HnD)
    per_page = CODE_ROWS * 8 // int(name.removeprefix("int"))
    values = codec.decode(records, x_HnD.shape[1], torch.empty(len(x_HnD), records.shape[1] * per_page, head_dim))
    assert records.shape[2] == PAGE_ROWS * head_dim
    steps = codec.mean_square_steps(records, x_HnD.shape[1])
    return Stored(values, 8 * records.numel() / x_HnD.numel(), steps)
