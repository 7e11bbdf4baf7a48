"""Settings of the tests that run inside other engines' code: one thread, and no model hub."""

from __future__ import annotations

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before a library reads it, once, when it is imported
torch.set_num_threads(1)
