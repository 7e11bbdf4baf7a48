"""What a calibration keeps of one layer: sums, whose size does not depend on how much was observed.

Axes: C cached chunks, L forwards that read them, H KV heads, T tokens of a chunk, Q sampled queries, D head_dim;
F frames of a block, U blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedvid.calibration.sampling import SAMPLED_QUERIES, spread_over_frames
from pagedvid.codecs.klt.blocks import BlockLayout, cosine_transform
from pagedvid.errors import ShapeError
from pagedvid.rotary.tables import rotate, unrotate

SAMPLED_ANGLES = 16
"""Key positions per chunk by whose angles queries are un-rotated."""
_SUMS = ("query_square_HDD", "key_weight_HF", "value_weight_HF")


@dataclass(frozen=True)
class Observation:
    """Forwards of one layer that read cached chunks; float32, before rotary embedding, in half layout."""

    k_CHTD: Tensor
    v_CHTD: Tensor
    q_LHTD: Tensor
    """Queries, one query head per KV head; the query heads of a group count as separate forwards."""
    current_k_LHTD: Tensor
    current_v_LHTD: Tensor
    cos_CTP: Tensor
    """Rotary tables [C + 1, T, D / 2] of the cached chunks and, last, of the chunk that reads them."""
    sin_CTP: Tensor

    def __post_init__(self) -> None:
        """Raises ShapeError for tensors whose shapes or dtypes do not match."""
        num_chunks, num_heads, num_tokens, head_dim = _four(self.k_CHTD.shape)
        num_readers, inner = _four(self.q_LHTD.shape)[0], (num_heads, num_tokens, head_dim)
        angles = (num_chunks + 1, num_tokens, head_dim // 2)
        expected = {
            "k_CHTD": (num_chunks, *inner),
            "v_CHTD": (num_chunks, *inner),
            "cos_CTP": angles,
            "sin_CTP": angles,
        }
        expected |= dict.fromkeys(("q_LHTD", "current_k_LHTD", "current_v_LHTD"), (num_readers, *inner))
        for name, shape in expected.items():
            found: Tensor = getattr(self, name)
            if tuple(found.shape) != shape or found.dtype != torch.float32:
                raise ShapeError(
                    f"{name} is {found.dtype} {list(found.shape)}; with k_CHTD {list(self.k_CHTD.shape)} it must be "
                    f"torch.float32 {list(shape)}"
                )

    def rotated(self, x_HTD: Tensor, chunk: int) -> Tensor:
        """`x` [..., T, D] rotated to the positions of a chunk; -1 is the chunk that reads."""
        return rotate(x_HTD, self.cos_CTP[chunk], self.sin_CTP[chunk])

    def attention(self, number: int, sampled: range | None = None) -> tuple[Tensor, Tensor]:
        """(weights [H, Q, C * T] of the cached tokens, outputs [H, Q, D]) for some queries of a forward; None: all."""
        q_HQD = self.rotated(self.q_LHTD[number], -1)
        q_HQD = q_HQD if sampled is None else q_HQD[:, sampled.start :: sampled.step]
        current = self.rotated(self.current_k_LHTD[number], -1)
        keys = [self.rotated(k_HTD, chunk) for chunk, k_HTD in enumerate(self.k_CHTD)]
        scores = q_HQD @ torch.cat([*keys, current], dim=1).mT * q_HQD.shape[-1] ** -0.5
        weights = scores.softmax(-1)
        values = torch.cat([*self.v_CHTD.unbind(0), self.current_v_LHTD[number]], dim=1)
        return weights[..., : -current.shape[1]], weights @ values


class BlockMoments:
    """The mean of tokens, and the second moments of the cosine transform of their blocks, by KV head."""

    def __init__(self, layout: BlockLayout) -> None:
        self.layout = layout
        self._cosines_FF = cosine_transform(layout.num_frames)
        self._origin_H1D: Tensor | None = None
        """Subtracted from every token, so that a large mean costs no precision."""
        self._sum_HD = self._square_HFDD = torch.zeros((), dtype=torch.float32)
        self._num_blocks = 0

    def add(self, x_HTD: Tensor) -> None:
        """Counts one chunk, float32."""
        if self._origin_H1D is None:
            self._origin_H1D = x_HTD.mean(1, keepdim=True)
        tokens_UF = self.layout.tokens(x_HTD.shape[1])
        blocks_HUFD = (x_HTD - self._origin_H1D)[:, tokens_UF]
        spectrum_HFUD = (self._cosines_FF @ blocks_HUFD).transpose(1, 2)
        self._sum_HD = self._sum_HD + blocks_HUFD.sum((1, 2))
        self._square_HFDD = self._square_HFDD + spectrum_HFUD.mT @ spectrum_HFUD
        self._num_blocks += len(tokens_UF)

    @property
    def num_blocks(self) -> int:
        """Blocks counted."""
        return self._num_blocks

    def state(self) -> dict[str, Tensor]:
        """All sums, after the first chunk; `restore` takes them."""
        assert self._origin_H1D is not None
        num_blocks = torch.tensor(self._num_blocks, dtype=torch.int64)
        sums = {"sum": self._sum_HD, "square": self._square_HFDD, "num_blocks": num_blocks}
        return {"origin": self._origin_H1D, **sums}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the sums of another `BlockMoments` of the same layout."""
        self._origin_H1D, self._sum_HD, self._square_HFDD = (state[name] for name in ("origin", "sum", "square"))
        self._num_blocks = int(state["num_blocks"])

    def mean_HD(self) -> Tensor:
        """The mean token [H, D]."""
        assert self._origin_H1D is not None
        return self._origin_H1D[:, 0] + self._offset_HD()

    def covariance_HFDD(self) -> Tensor:
        """E[c c'] of the coefficients c [D] of tokens less their mean, at every frequency: [H, F, D, D]."""
        offset_HD = self._offset_HD()
        covariance = self._square_HFDD / self._num_blocks
        covariance[:, 0] -= self.layout.num_frames * offset_HD[:, :, None] * offset_HD[:, None]
        return covariance

    def _offset_HD(self) -> Tensor:
        return self._sum_HD / (self._num_blocks * self.layout.num_frames)


@dataclass
class LayerStatistics:
    """The sums from which the tables of one layer are made."""

    layout: BlockLayout
    keys: BlockMoments = field(init=False)
    values: BlockMoments = field(init=False)
    query_square_HDD: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32))
    """Sum of q q' over queries un-rotated to key positions, as keys before rotary embedding meet them."""
    key_weight_HF: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32))
    """Sums of how much an error of a key at each frequency of a block changes outputs."""
    value_weight_HF: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32))
    """The same for values."""

    num_readings: int = 0
    """Calls of `add_reading`."""

    def __post_init__(self) -> None:
        self.keys, self.values = BlockMoments(self.layout), BlockMoments(self.layout)

    @property
    def is_complete(self) -> bool:
        """Whether chunks and queries were seen."""
        return self.keys.num_blocks > 0 and self.query_square_HDD.ndim > 0

    def state(self) -> dict[str, Tensor]:
        """All sums; `restore` takes them."""
        moments = {"keys": self.keys, "values": self.values}
        sums = {f"{kind}.{name}": x for kind, each in moments.items() for name, x in each.state().items()}
        num_readings = torch.tensor(self.num_readings, dtype=torch.int64)
        return sums | {name: getattr(self, name) for name in _SUMS} | {"num_readings": num_readings}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the sums of another `LayerStatistics` of the same layout."""
        for kind, moments in (("keys", self.keys), ("values", self.values)):
            prefix = f"{kind}."
            moments.restore({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})
        for name in _SUMS:
            setattr(self, name, state[name])
        self.num_readings = int(state["num_readings"])

    def add_chunk(self, k_HTD: Tensor, v_HTD: Tensor) -> None:
        """Counts a chunk that is stored; float32, before rotary embedding, in half layout. Raises ShapeError."""
        for name, x_HTD in (("k_HTD", k_HTD), ("v_HTD", v_HTD)):
            if x_HTD.ndim != 3 or x_HTD.shape != k_HTD.shape or x_HTD.dtype != torch.float32:
                raise ShapeError(
                    f"{name} is {x_HTD.dtype} {list(x_HTD.shape)}; keys and values of a chunk must both be "
                    "torch.float32 [KV heads, tokens, head_dim]"
                )
        self.keys.add(k_HTD)
        self.values.add(v_HTD)

    def add_reading(self, seen: Observation) -> None:
        """Counts sampled queries, and how much attention they give to the cached chunks."""
        size = seen.k_CHTD.shape[2]
        sampled = self._sampled(size, SAMPLED_QUERIES)
        self._add_queries(seen, sampled)
        cosines_FF = cosine_transform(self.layout.num_frames)
        tokens_UF = self.layout.tokens(size)
        for number in range(len(seen.q_LHTD)):
            weights_HQn, out_HQD = seen.attention(number, sampled)
            for chunk, p_HQT in enumerate(weights_HQn.split(size, dim=-1)):
                distance_HQT = torch.cdist(out_HQD, seen.v_CHTD[chunk])
                keys, values = (
                    (weight_HQT[..., tokens_UF] @ cosines_FF.T).square().mean((1, 2))
                    for weight_HQT in (p_HQT * distance_HQT, p_HQT)
                )
                self.key_weight_HF = self.key_weight_HF + keys
                self.value_weight_HF = self.value_weight_HF + values

        self.num_readings += 1

    def _sampled(self, num_tokens: int, num_samples: int) -> range:
        """Tokens to sample; they differ from reading to reading, so that none is always left out."""
        return spread_over_frames(num_tokens, self.layout.tokens_per_frame, num_samples, self.num_readings)

    def _add_queries(self, seen: Observation, sampled: range) -> None:
        q_LHQD = seen.rotated(seen.q_LHTD, -1)[:, :, sampled.start :: sampled.step]
        for chunk in range(len(seen.k_CHTD)):
            for token in self._sampled(seen.cos_CTP.shape[1], SAMPLED_ANGLES):
                unrotated_LHQD = unrotate(q_LHQD, seen.cos_CTP[chunk, token], seen.sin_CTP[chunk, token])
                self.query_square_HDD = self.query_square_HDD + (unrotated_LHQD.mT @ unrotated_LHQD).sum(0)


def _four(shape: torch.Size) -> torch.Size:
    """The shape itself. Raises ShapeError unless it has four axes."""
    if len(shape) != 4:
        raise ShapeError(f"a tensor of an observation has the shape {list(shape)}; it must have four axes")
    return shape
