"""The kernels that read and write klt pages in the configurations that real models run; part of catalogue.py.

Shapes: klt1.5 with pages of 24 rows of 128 channels, frames of 30 x 52 tokens, blocks of a chunk's 3, 4 or 6 frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.compiled import Launch
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.coding import KltCoding
from pagedvid.codecs.klt.kernels import pack as klt_pack
from pagedvid.codecs.klt.kernels import scales as klt_scales
from pagedvid.codecs.klt.kernels import transform as klt_transform
from pagedvid.codecs.klt.kernels.decode import klt_decode_constants, klt_decode_kernel, num_warps
from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.spec import KltSpec
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.page import PageFormat
from pagedvid.codecs.registry import read_codec
from pagedvid.rotary.axis_tables import AngleTables

CODEC = "klt1.5"
HEAD_DIM = 128


def klt_launches(frame: AngleTables) -> Iterator[Launch]:
    """All configurations; `frame`: what keys rotate by."""
    for num_frames in (3, 4, 6):
        layout = klt_layout(num_frames, frame.frame_tokens)
        for angles in (frame, None):
            constants = klt_decode_constants(layout, torch.bfloat16, angles)
            label = f"{CODEC}, {num_frames} frames" + (", rotated" if angles is not None else "")
            yield Launch.of(label, klt_decode_kernel, constants, num_warps(layout, torch.bfloat16))
        constants = klt_decode_constants(layout, torch.float32, None)  # what a commit measures, and what it reads again
        label = f"{CODEC}, {num_frames} frames, float32"
        yield Launch.of(label, klt_decode_kernel, constants, num_warps(layout, torch.float32), out="*fp32")
    for num_frames in (3, 6):
        layout = klt_layout(num_frames, frame.frame_tokens)
        for kernel, constants, warps in (
            (klt_transform.klt_transform_kernel, klt_transform.transform_constants(layout), klt_transform.NUM_WARPS),
            (klt_scales.klt_scales_kernel, klt_scales.scales_constants(layout), klt_scales.NUM_WARPS),
            (klt_pack.klt_pack_kernel, klt_pack.pack_constants(layout), klt_pack.NUM_WARPS),
        ):
            yield Launch.of(f"{CODEC}, {num_frames} frames", kernel, constants, warps)


def klt_layout(num_frames: int, tokens_per_frame: int) -> KltLayout:
    """Of one head, with tables that change nothing and codes of all widths."""
    size = num_frames * HEAD_DIM
    tables = KltTables(
        BlockLayout(tokens_per_frame, num_frames),
        spectrum_N=torch.exp(-torch.arange(size) * 14 / size),
        mean_hD=torch.zeros(1, HEAD_DIM, dtype=torch.float32),
        analysis_hDD=torch.eye(HEAD_DIM, dtype=torch.float32)[None],
        deviation_hN=torch.ones(1, size, dtype=torch.float32),
        order_hN=torch.arange(size)[None],
    )
    page = PageFormat(HEAD_DIM, read_codec(CODEC).page_rows, tokens_per_frame, num_frames)
    spec = read_codec(CODEC)
    assert isinstance(spec, KltSpec)
    return KltLayout.of(page, KltCoding.of(spec, page, tables), torch.device("cpu"))
