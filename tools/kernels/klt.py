"""Kernels that read and write klt pages: klt1.5, 24 rows a page, blocks of a chunk's 3, 4 or 6 frames."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.channel import ANGLES, FRAME_TOKENS, HEAD_DIM, SCALES
from kernels.compile import Launch
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.coding import KltCoding
from pagedvid.codecs.klt.kernels import pack, scales, transform
from pagedvid.codecs.klt.kernels.decode import klt_decode_constants, klt_decode_kernel, num_warps
from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.spec import KltSpec
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat

CODEC = "klt1.5"
FLOAT8 = torch.float8_e4m3fn


def klt_launches() -> Iterator[Launch]:
    """Decoding, with and without rotation in float32 and to float8, and the three kernels of encoding."""
    for num_frames in (3, 4, 6):
        layout = klt_layout(num_frames)
        values = layout.page_blocks * num_frames * HEAD_DIM
        for angles in (ANGLES, None):
            constants = klt_decode_constants(layout, torch.bfloat16, angles, None)
            label = f"{CODEC}, {num_frames} frames" + (", rotated" if angles is not None else "")
            yield Launch.of(label, klt_decode_kernel, constants, num_warps(layout, torch.bfloat16), values=values)
        constants = klt_decode_constants(layout, torch.float32, None, None)  # when a commit pass measures a correction
        label, types = f"{CODEC}, {num_frames} frames, float32", {"out": "*fp32", "synthesis": "*fp32"}
        yield Launch.of(label, klt_decode_kernel, constants, num_warps(layout, torch.float32), values=values, **types)
    layout = klt_layout(3)
    constants, warps = klt_decode_constants(layout, FLOAT8, ANGLES, SCALES), num_warps(layout, FLOAT8)
    label, values = f"{CODEC}, 3 frames, rotated, float8", layout.page_blocks * 3 * HEAD_DIM
    yield Launch.of(label, klt_decode_kernel, constants, warps, values=values, capability=90, out="*fp8e4nv")
    for num_frames in (3, 6):
        layout = klt_layout(num_frames)
        for kernel, constants, warps in (
            (transform.klt_transform_kernel, transform.transform_constants(layout), transform.NUM_WARPS),
            (scales.klt_scales_kernel, scales.scales_constants(layout), scales.NUM_WARPS),
            (pack.klt_pack_kernel, pack.pack_constants(layout), pack.NUM_WARPS),
        ):
            yield Launch.of(f"{CODEC}, {num_frames} frames", kernel, constants, warps)


def klt_layout(num_frames: int) -> KltLayout:
    """One head, with tables that change nothing and codes of all widths."""
    spec = read_codec(CODEC)
    assert isinstance(spec, KltSpec)
    size = num_frames * HEAD_DIM
    tables = KltTables(
        BlockLayout(FRAME_TOKENS, num_frames),
        spectrum_N=torch.exp(-torch.arange(size) * 14 / size),
        mean_hD=torch.zeros(1, HEAD_DIM, dtype=torch.float32),
        analysis_hDD=torch.eye(HEAD_DIM, dtype=torch.float32)[None],
        deviation_hN=torch.ones(1, size, dtype=torch.float32),
        order_hN=torch.arange(size)[None],
    )
    page = PageFormat(HEAD_DIM, spec.page_rows, FRAME_TOKENS, num_frames)
    return KltLayout.of(page, KltCoding.of(spec, page, tables), torch.device("cpu"))
