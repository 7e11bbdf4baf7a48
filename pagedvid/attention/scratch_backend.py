"""History chunk by chunk: decode into a scratch, the dense library, then correction and merge in one kernel.

Pages are decoded once per step and layer, and the dense library runs at its full speed; in exchange one chunk's keys
and values lie in memory in the model's type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.attention.kernels.decode import decode
from pagedvid.attention.kernels.layout import PageLayout
from pagedvid.attention.kernels.merge import corrected_merge
from pagedvid.attention.kernels.work import Noise
from pagedvid.attention.step_tables import History
from pagedvid.attention.triton_backend import Prepared, Total, TritonBackend
from pagedvid.chunk_codecs import KINDS


class ScratchBackend(TritonBackend[None]):
    """See the module docstring."""

    name = "scratch"

    def _cut(self, history: History, dtype: torch.dtype) -> None:
        """Nothing more than the history itself."""

    def _attend_history(
        self,
        prepared: Prepared[None],
        history: History,
        work: None,
        layer: int,
        q_THD: Tensor,
        layouts: tuple[PageLayout, PageLayout],
        total: Total,
    ) -> None:
        spec = self._spec
        noise = self.noise(history, layer, history.codecs.of("keys", layer))
        turn, first_row = history.turn_of(layer), 0
        for number, (read, range_) in enumerate(zip(history.reads, history.readers, strict=True)):
            num_tokens = read.chunk.num_tokens
            rows = slice(first_row, first_row + num_tokens)
            first_row += num_tokens
            pages = [history.pages_of(number, kind, layer) for kind in KINDS]
            shape = (num_tokens, spec.num_kv_heads, spec.head_dim)
            keys, values = (self.buffer(kind, shape, q_THD.dtype) for kind in KINDS)
            angles = None if turn is None else (turn[0][rows], turn[1][rows])
            decode(self._pool.records, layouts[0], pages[0], keys, angles)
            decode(self._pool.records, layouts[1], pages[1], values)
            tokens = slice(range_.start, range_.stop)
            partial = prepared.dense(q_THD[tokens], keys, values, history.sequences[number], spec.scale)
            corrected_merge(
                (total[0][tokens], total[1][tokens]),
                partial,
                q_THD[tokens],
                self._pool.records,
                layouts[0],
                pages[0],
                num_tokens,
                spec.scale,
                None if noise is None else _of_segment(noise, number),
            )


def _of_segment(noise: Noise, number: int) -> Noise:
    alpha, variance = (None if kept is None else kept[number] for kept in (noise.alpha, noise.variance))
    return Noise(noise.mode, noise.pairs, alpha, variance)
