"""Which errors make another engine necessary."""

from __future__ import annotations

import pytest
import torch

from pagedvid.errors import CapacityError, IntegrityError, ModelError, StateError
from pagedvid.service.rebuilding import breaks_engine


@pytest.mark.parametrize(
    "error",
    [
        IntegrityError("page 7 is in two chunks"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA driver error: device not ready"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
        RuntimeError("HIP error: the operation cannot be performed"),
    ],
)
def test_broken(error):
    assert breaks_engine(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        CapacityError("no pages"),
        ModelError("RuntimeError: broke"),
        StateError("released"),
        ValueError("CUDA error: a text about it"),
        MemoryError(),
    ],
)
def test_sound(error):
    assert not breaks_engine(error)
