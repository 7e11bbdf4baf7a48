"""CUDA graphs: operations that are recorded once and then run again by a single call of the driver."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any, Protocol

import torch


class Graph(Protocol):
    """A sequence of operations on fixed places in memory."""

    def begin(self) -> None:
        """Starts the recording: operations are recorded from now on, and do not run."""
        ...

    def end(self) -> None:
        """Ends the recording; `replay` runs it."""
        ...

    def abandon(self) -> None:
        """Ends a recording that failed; the graph is of no use."""
        ...

    def replay(self) -> None:
        """Runs what was recorded, with what is now in its places."""
        ...


class CudaGraphs:
    """Makes graphs that share memory: no two of them may run at the same time, which one stream sees to."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._stream: Any = torch.cuda.Stream(device)
            self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self) -> Graph:
        """A new graph."""
        return _CudaGraph(self._stream, self._pool)


class _CudaGraph:
    def __init__(self, stream: Any, pool: Any) -> None:
        self._stream, self._pool = stream, pool
        self._graph: Any = torch.cuda.CUDAGraph()
        self._recording = ExitStack()

    def begin(self) -> None:
        # Nothing runs on this stream: PyTorch does not record on the one where work is done.
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._recording.enter_context(torch.cuda.stream(self._stream))
        # Threads that decode or read frames may call what no recording allows.
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> None:
        with self._recording:
            self._graph.capture_end()

    def abandon(self) -> None:
        with self._recording, suppress(RuntimeError):  # what a failed recording ends with, after the error that counts
            self._graph.capture_end()

    def replay(self) -> None:
        self._graph.replay()
