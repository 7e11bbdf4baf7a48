"""Every test runs in vLLM-Omni's process groups, with one process."""

from __future__ import annotations

import pytest

from tests.engines.vllm_omni.on_cpu import one_rank


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """vLLM's configuration, in force while the tests run."""
    with one_rank(tmp_path_factory.mktemp("rank")) as made:
        yield made
