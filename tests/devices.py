"""Where the tests of kernels run."""

from __future__ import annotations

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where there is a GPU the kernels run on it, otherwise in the interpreter (tests/conftest.py)."""
