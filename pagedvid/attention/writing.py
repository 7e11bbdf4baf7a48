"""What a commit pass gives for storing: one layer of a pending chunk.

Axes: n tokens, H KV heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from pagedvid.attention.measure import ProjectedQueries
from pagedvid.attention.rotation import Readers
from pagedvid.cache.plan import PendingChunk
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.heads import index_of, query_heads
from pagedvid.rotary.tables import Arrival


@dataclass(frozen=True)
class Writing:
    """One layer of a pending chunk as it arrives."""

    pending: PendingChunk
    readers: Readers | None
    """Sampled queries of the range (`Rotation.as_reading`); None where nothing is measured with them."""
    k_nHD: Tensor
    """As the model gave them."""
    v_nHD: Tensor
    arrival: Arrival = field(default_factory=Arrival)
    projected: Sequence[ProjectedQueries] = ()
    """The same queries for every further view in which the chunk will be read."""

    def exact(self, heads: Heads) -> tuple[Tensor, Tensor]:
        """Keys (before rotary embedding, in half layout) and values of some KV heads, float32 [h, n, D]."""
        v_nhD = self.v_nHD[:, index_of(heads, self.v_nHD.device)]
        return self.exact_keys(heads), v_nhD.transpose(0, 1).float()

    def exact_keys(self, heads: Heads) -> Tensor:
        """The keys of `exact`."""
        k_nhD = self.k_nHD[:, index_of(heads, self.k_nHD.device)]
        return self.arrival.plain(k_nhD).transpose(0, 1).float()

    def readers_of(self, heads: Heads) -> tuple[Readers | None, Sequence[ProjectedQueries]]:
        """Readers and projected queries of some KV heads."""
        if self.readers is None or len(heads) == self.k_nHD.shape[1]:
            return self.readers, self.projected
        group = self.readers.here_SHD.shape[1] // self.k_nHD.shape[1]
        queries = index_of(query_heads(heads, group), self.k_nHD.device)
        projected = [replace(each, q_SHD=each.q_SHD[:, queries]) for each in self.projected]
        return self.readers.of_heads(queries), projected
