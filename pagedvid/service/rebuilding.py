"""Which errors say that an engine is broken, beyond the one video that met them; and building another one."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence

import torch

from pagedvid.engine.engine import Engine
from pagedvid.engine.failures import described, presentable
from pagedvid.errors import IntegrityError, WorkerError

logger = logging.getLogger(__name__)

BUILD_DELAYS_SECONDS = (0.0, 1.0, 5.0, 30.0)
"""Waited before each attempt to build an engine again; there are no further attempts."""
_DEVICE_WORDS = ("CUDA error", "CUDA driver error", "HIP error", "CUBLAS_STATUS_", "CUDNN_STATUS_")
_FULL_MEMORY_WORDS = ("out of memory", "ALLOC_FAILED")


def wait(seconds: float) -> bool:
    """Waits, and never gives up."""
    time.sleep(seconds)
    return False


def breaks_engine(error: Exception) -> bool:
    """Whether nothing that the engine holds can be trusted after this error."""
    return isinstance(error, IntegrityError) or is_lost_device(error)


def is_lost_device(error: Exception) -> bool:
    """Whether an accelerator failed in a way that its later calls repeat; full memory is not one.

    PyTorch has no class for it before 2.8, and libraries on top of it have none at all: the words decide. An illegal
    access ruins the device for the whole process. No engine can be built in it again then, and a new process has to go
    on from the checkpoints.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    message = str(error)
    return any(word in message for word in _DEVICE_WORDS) and not any(word in message for word in _FULL_MEMORY_WORDS)


def build_again(
    build_engine: Callable[[], Engine],
    reason: str,
    delays_seconds: Sequence[float],
    wait: Callable[[float], bool] = wait,
) -> Engine:
    """Another engine, after the old one has been closed.

    `wait`: waits so many seconds, and returns True to give up. Raises WorkerError.
    """
    latest = "none was made"
    for delay in delays_seconds:
        if wait(delay):
            raise WorkerError(f"the engine broke ({reason}), and the worker was stopped before it was built again")
        gc.collect()  # the old pool may be part of a reference cycle, and there is no room for two
        try:
            return build_engine()
        except Exception as error:
            latest = described(presentable(error))
            logger.error("the engine could not be built again: %s", latest)
    raise WorkerError(
        f"the engine broke ({reason}) and could not be built again in {len(delays_seconds)} attempts; the latest "
        f"ended with {latest}. Start a new process: videos go on from their checkpoints there"
    )
