"""A second, slow reader of page records, in numpy and from the descriptions in codecs/page.py, codecs/packing.py,
codecs/channel/step_sizes.py and codecs/token/codec.py alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pagedvid.codecs.base import Codec
from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.page import PageFormat
from pagedvid.codecs.registry import read_codec


class Grid(NamedTuple):
    """What is stored of tokens, and the grid they were rounded to: all float64 [R, n, D]."""

    values: np.ndarray
    steps: np.ndarray
    zeros: np.ndarray


def read_codes(code_bytes: np.ndarray, bits: int) -> np.ndarray:
    """Bytes uint8 [..., C, D] -> codes [..., 8 / bits * C, D]: code t lies in byte t mod C, bits * (t div C) up."""
    num_rows = code_bytes.shape[-2]
    index = np.arange(num_rows * 8 // bits)
    shifts = (bits * (index // num_rows)).astype(np.uint8)
    return (code_bytes[..., index % num_rows, :] >> shifts[:, None]) & (2**bits - 1)


def read_step_sizes(step_size_bytes: np.ndarray, by_pair: bool, is_short: bool) -> np.ndarray:
    """Bytes uint8 [..., S * D] -> steps float64 [..., D]."""
    if is_short:
        short = step_size_bytes[..., : step_size_bytes.shape[-1] // (1 + by_pair)].astype(np.float64)
        steps = np.where(short == 0, 0.0, 2 ** ((short - 160) / 6))
    else:
        steps = np.ascontiguousarray(step_size_bytes).view(np.float16).astype(np.float64)
    return np.concatenate([steps, steps], axis=-1) if by_pair else steps


def read_channel_pages(records: np.ndarray, page: PageFormat, codec: str) -> Grid:
    """Records uint8 [R, P, B] -> [R, P * page_tokens, D]."""
    name, width = read_codec(codec), page.head_dim
    step_rows = 2 if not name.by_pair and not name.is_short else 1
    code_rows = page.rows - 2 - step_rows
    rows = records.reshape(*records.shape[:2], page.rows, width)
    codes = read_codes(rows[:, :, :code_rows], int(name.bits)).astype(np.float64)
    steps = read_step_sizes(rows[:, :, code_rows:-2].reshape(*rows.shape[:2], -1), name.by_pair, name.is_short)
    zeros = np.ascontiguousarray(rows[:, :, -2:]).reshape(*rows.shape[:2], -1).view(np.float16).astype(np.float64)
    grid = np.broadcast_arrays(zeros[:, :, None] + steps[:, :, None] * codes, steps[:, :, None], zeros[:, :, None])
    return Grid(*(x.reshape(len(records), -1, width) for x in grid))


def read_token_pages(records: np.ndarray, page: PageFormat, codec: str) -> Grid:
    """Records uint8 [R, P, B] -> [R, P * page_tokens, D]; of rotated channels for hadamard codecs."""
    name, width = read_codec(codec), page.head_dim
    num_groups, num_tokens = width // name.group, page.num_bytes // read_codec(codec).token_bytes(page)
    code_bytes = num_tokens * width * int(name.bits) // 8
    codes = read_codes(records[:, :, :code_bytes, None], int(name.bits)).astype(np.float64)
    numbers = np.ascontiguousarray(records[:, :, code_bytes : num_tokens * read_codec(codec).token_bytes(page)])
    numbers = numbers.view(np.float16).astype(np.float64).reshape(*records.shape[:2], 2, num_tokens, num_groups, 1)
    steps, zeros = numbers[:, :, 0], numbers[:, :, 1]
    values = zeros + steps * codes.reshape(*records.shape[:2], num_tokens, num_groups, name.group)
    grid = np.broadcast_arrays(values, steps, zeros)
    return Grid(*(x.reshape(len(records), -1, width) for x in grid))


def read_pages(records_RPB: Tensor, page: PageFormat, codec: str, num_tokens: int) -> Grid:
    """The first tokens of pages of any channel, token or hadamard codec."""
    read = read_channel_pages if isinstance(read_codec(codec), ChannelSpec) else read_token_pages
    return Grid(*(x[:, :num_tokens] for x in read(records_RPB.numpy(), page, codec)))


def decode(
    codec: Codec, page: PageFormat, records_RPB: Tensor, num_tokens: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Into a buffer full of NaN, so that whatever is not written shows."""
    padded = read_codec(codec.name).padded_tokens(page, num_tokens)
    return codec.decode(
        records_RPB, num_tokens, torch.full((len(records_RPB), padded, page.head_dim), torch.nan, dtype=dtype)
    )
