"""A second, slow reader of page records in numpy, written only from the docstrings of codecs/packing.py,
codecs/channel/codec.py, codecs/codecs/packing.py and codecs/token/codec.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pagedvid.codecs.base import Codec
from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat


class Grid(NamedTuple):
    """The stored values of tokens and the grid they were rounded to, all float64 [R, n, D]."""

    values: np.ndarray
    step_sizes: np.ndarray
    zero_points: np.ndarray


def read_codes(code_bytes: np.ndarray, bits: int) -> np.ndarray:
    """Bytes uint8 [..., C, D] -> codes [..., 8 / bits * C, D]: code t is in byte t mod C, bits * (t div C) up."""
    num_rows = code_bytes.shape[-2]
    index = np.arange(num_rows * 8 // bits)
    shifts = (bits * (index // num_rows)).astype(np.uint8)
    return (code_bytes[..., index % num_rows, :] >> shifts[:, None]) & (2**bits - 1)


def read_step_sizes(step_size_bytes: np.ndarray, by_pair: bool, is_short: bool) -> np.ndarray:
    """Bytes uint8 [..., S * D] -> step sizes float64 [..., D]."""
    if is_short:
        short = step_size_bytes[..., : step_size_bytes.shape[-1] // (1 + by_pair)].astype(np.float64)
        step_sizes = np.where(short == 0, 0.0, 2 ** ((short - 160) / 6))
    else:
        step_sizes = np.ascontiguousarray(step_size_bytes).view(np.float16).astype(np.float64)
    return np.concatenate([step_sizes, step_sizes], axis=-1) if by_pair else step_sizes


def read_channel_pages(records: np.ndarray, page: PageFormat, codec: str) -> Grid:
    """Records uint8 [R, P, B] -> [R, P * page_tokens, D]."""
    name, width = read_codec(codec), page.head_dim
    step_size_rows = 2 if not name.by_pair and not name.is_short else 1
    code_rows = page.rows - 2 - step_size_rows
    rows = records.reshape(*records.shape[:2], page.rows, width)
    codes = read_codes(rows[:, :, :code_rows], int(name.bits)).astype(np.float64)
    step_sizes = read_step_sizes(rows[:, :, code_rows:-2].reshape(*rows.shape[:2], -1), name.by_pair, name.is_short)
    zero_points = np.ascontiguousarray(rows[:, :, -2:]).reshape(*rows.shape[:2], -1).view(np.float16).astype(np.float64)
    grid = np.broadcast_arrays(
        zero_points[:, :, None] + step_sizes[:, :, None] * codes, step_sizes[:, :, None], zero_points[:, :, None]
    )
    return Grid(*(x.reshape(len(records), -1, width) for x in grid))


def read_token_pages(records: np.ndarray, page: PageFormat, codec: str) -> Grid:
    """Records uint8 [R, P, B] -> [R, P * page_tokens, D]; for hadamard codecs, of the rotated channels."""
    name, width = read_codec(codec), page.head_dim
    num_groups, num_tokens = width // name.group, page.num_bytes // read_codec(codec).token_bytes(page)
    code_bytes = num_tokens * width * int(name.bits) // 8
    codes = read_codes(records[:, :, :code_bytes, None], int(name.bits)).astype(np.float64)
    numbers = np.ascontiguousarray(records[:, :, code_bytes : num_tokens * read_codec(codec).token_bytes(page)])
    numbers = numbers.view(np.float16).astype(np.float64).reshape(*records.shape[:2], 2, num_tokens, num_groups, 1)
    step_sizes, zero_points = numbers[:, :, 0], numbers[:, :, 1]
    values = zero_points + step_sizes * codes.reshape(*records.shape[:2], num_tokens, num_groups, name.group)
    grid = np.broadcast_arrays(values, step_sizes, zero_points)
    return Grid(*(x.reshape(len(records), -1, width) for x in grid))


def read_pages(records_RPB: Tensor, page: PageFormat, codec: str, num_tokens: int) -> Grid:
    """The first tokens of pages of any channel, token or hadamard codec."""
    read = read_channel_pages if isinstance(read_codec(codec), ChannelSpec) else read_token_pages
    return Grid(*(x[:, :num_tokens] for x in read(records_RPB.numpy(), page, codec)))


def decode(
    codec: Codec, page: PageFormat, records_RPB: Tensor, num_tokens: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Tokens decoded into a buffer full of NaN, so that anything not written shows."""
    padded = read_codec(codec.name).padded_tokens(page, num_tokens)
    return codec.decode(
        records_RPB, num_tokens, torch.full((len(records_RPB), padded, page.head_dim), torch.nan, dtype=dtype)
    )
