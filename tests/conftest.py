"""Settings of the whole test suite: one thread, no model hub, no tokens of Ray, and property tests with the same
examples in every run.

`pytest --hypothesis-profile=explore` draws new and more examples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before a library reads it, once, when it is imported
os.environ["RAY_AUTH_MODE"] = "disabled"  # the first local Ray would else demand tokens of all later ones' drivers
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before kernels are defined: without a GPU they run in Triton's interpreter
    from tests.interpreter import prepare_the_language_once

    prepare_the_language_once()
torch.set_num_threads(1)

collect_ignore = ["engines"]
"""Needs packages of its own: tools/test_engines.sh runs these tests."""

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=50, database=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors of the kernels' tests, in folders called kernels, are made where the kernels run."""
    runs_kernels = "kernels" in request.path.parts and torch.cuda.is_available()
    with torch.device("cuda") if runs_kernels else nullcontext():
        yield
