"""Layers that both variants of HY-WorldPlay use. Names of parameters are those of the published checkpoints.

Axes: F frames of n tokens each, N width, H heads, D head_dim, T packed tokens.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.rotary.grid_rotary import GridRotary

EPSILON = 1e-6
SINUSOID_CHANNELS = 256


class AttendTwice(Protocol):
    """Self-attention of one layer in both copies, over history and current tokens."""

    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> tuple[Tensor, Tensor]:
        """(rotary copy, projective copy), both [T, H, D], the latter transformed back to the query's camera.

        q and k come after their norm, before RoPE and PRoPE; call it exactly once per layer and forward.
        """
        ...


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a gain."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x, in its dtype."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), eps=EPSILON).to(x.dtype)


class Sinusoid(nn.Module):
    """Numbers (timesteps 0 to 1000, action ids) as 256 cosines and sines."""

    def __init__(self) -> None:
        super().__init__()
        half = SINUSOID_CHANNELS // 2
        # No buffer: it must stay float32 when the network is made bfloat16, as timesteps go up to 1000.
        self.frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device="cpu") / half)

    def forward(self, numbers: Tensor) -> Tensor:
        """[...] -> float32 [..., 256]."""
        self.frequencies = self.frequencies.to(numbers.device)  # copied there by the first call
        angles = numbers.float().unsqueeze(-1) * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def layer_norm(x: Tensor) -> Tensor:
    """Over the last axis, without gain."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPSILON).to(x.dtype)


def modulated(x_FnN: Tensor, shift_FN: Tensor, scale_FN: Tensor) -> Tensor:
    """Layer norm, scaled and shifted frame by frame."""
    return torch.addcmul(shift_FN.unsqueeze(1), layer_norm(x_FnN), 1 + scale_FN.unsqueeze(1))


def gated(x_FnN: Tensor, gate_FN: Tensor, update_FnN: Tensor) -> Tensor:
    """x plus the update times each frame's gate."""
    return torch.addcmul(x_FnN, gate_FN.unsqueeze(1), update_FnN)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[..., N] -> [T, H, D]."""
    return x.reshape(-1, num_heads, x.shape[-1] // num_heads)


def full_attention(q_nHD: Tensor, k_mHD: Tensor, v_mHD: Tensor) -> Tensor:
    """Plain attention of one set of queries over one set of keys, [n, H * D]."""
    q, k, v = (x.transpose(0, 1) for x in (q_nHD, k_mHD, v_mHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)


def slot_rotary(channels: tuple[int, int, int], rows: int, columns: int, theta: float) -> GridRotary:
    """Rotary embedding of frames of `rows` x `columns` tokens; `channels` of a head rotate with time, row and column.

    The position in time is a frame's slot in memory and chunk (0, 1, 2, ...), not its number in the video, so places
    in a window are slots of whole frames: the tables raise ShapeError for a cut one.
    """
    return GridRotary.from_theta(channels, rows, columns, "interleaved", theta=theta, whole_frames=True)
