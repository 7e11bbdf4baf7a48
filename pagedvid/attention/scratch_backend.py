"""History chunk by chunk: decode into a scratch, the dense library, then correction and merge in one kernel."""

from __future__ import annotations

import torch

from pagedvid.attention.step_tables import History
from pagedvid.attention.triton_backend import TritonBackend


class ScratchBackend(TritonBackend[None]):
    """See the module docstring, and chunk_scratch.py for what it costs."""

    name = "scratch"

    def _cut(self, history: History, dtype: torch.dtype) -> None:
        """Nothing more than the history itself."""
