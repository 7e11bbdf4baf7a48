"""A second, slow reader of page records, in numpy and from the description in geometry.py and quant/pages.py alone."""

from __future__ import annotations

import numpy as np
from torch import Tensor

BITS = {"int8": 8, "int4": 4, "int2": 2}
CODE_ROWS = 32


def read_record(records: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Records uint8 [..., 36 * D] -> codes [..., page_tokens, D], steps and zeros [..., D], all float64."""
    head_dim = records.shape[-1] // 36
    code_bytes = records[..., : CODE_ROWS * head_dim].reshape(*records.shape[:-1], CODE_ROWS, head_dim)
    metadata = np.ascontiguousarray(records[..., CODE_ROWS * head_dim :]).view(np.float16).astype(np.float64)
    tokens = np.arange(CODE_ROWS * 8 // bits)
    shifts = (bits * (tokens // CODE_ROWS)).astype(np.uint8)
    codes = (code_bytes[..., tokens % CODE_ROWS, :] >> shifts[:, None]) & (2**bits - 1)
    return codes.astype(np.float64), metadata[..., :head_dim], metadata[..., head_dim:]


def read_quantized(records_RPB: Tensor, codec: str, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [R, n, D] and the step size of each of their pages [R, n, D], float64."""
    codes, step, zero = read_record(records_RPB.numpy(), BITS[codec])
    step, zero = step[:, :, None], zero[:, :, None]
    values, steps = zero + step * codes, np.broadcast_to(step, codes.shape)
    num_rows, _, _, head_dim = codes.shape
    return tuple(x.reshape(num_rows, -1, head_dim)[:, :num_tokens].copy() for x in (values, steps))
