"""vLLM-Omni's own functions, called with pages; and its configuration, with the names of docs/engines.md."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm_omni.diffusion.data import OmniDiffusionConfig
from vllm_omni.experimental.ar_diffusion.capability import SupportsARDiffusionPipeline
from vllm_omni.experimental.ar_diffusion.kv_cache.paged_attention import (
    ARDiffusionPagedLayerInputs,
    is_ar_diffusion_paged_context,
    paged_write_attn,
)
from vllm_omni.experimental.ar_diffusion.kv_cache.state import ARDiffusionKVState

from pagedvid import ShapeError, StateError
from pagedvid.integrations.vllm_omni.session import PagedSession
from tests.engines.vllm_omni.rollouts import PAGED, new_runner
from tests.engines.vllm_omni.tiny_lingbot import BLOCK_TOKENS, HEAD_DIM, HEADS, LAYERS

PAGE = (Path(__file__).parents[3] / "docs" / "engines.md").read_text(encoding="utf-8")


@pytest.fixture
def session(config):
    return new_runner(PAGED, config, codecs="fp32")._get_or_create_session("a")


def inputs_of(session) -> ARDiffusionPagedLayerInputs:
    (first, *others) = session.get_kv_caches("main", seq_len=BLOCK_TOKENS, commit_current=False)
    assert is_ar_diffusion_paged_context(first) and len(others) == LAYERS - 1
    first.forward_ctx.prepare(device=torch.device("cpu"), action_len=0, query_len=BLOCK_TOKENS)
    inputs = first.to_layer_inputs()
    assert isinstance(inputs, ARDiffusionPagedLayerInputs)
    return inputs


def test_its_operator_attends_over_pages(session):
    q, k, v = torch.randn(3, BLOCK_TOKENS, HEADS, HEAD_DIM)
    found = paged_write_attn(inputs_of(session), q, k, v, None, None, HEAD_DIM**-0.5)
    q, k, v = (each.transpose(0, 1) for each in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_pages_do_not_take(session):
    qkv, scale = torch.randn(3, BLOCK_TOKENS, HEADS, HEAD_DIM), HEAD_DIM**-0.5
    with pytest.raises(ShapeError, match="action tokens"):
        paged_write_attn(inputs_of(session), *qkv, *qkv[1:], scale)
    with pytest.raises(ShapeError, match="softmax scale"):
        paged_write_attn(inputs_of(session), *qkv, None, None, 1.0)
    with pytest.raises(StateError, match="add was called with pages"):
        torch.ops.aten.add(inputs_of(session).key_pool, 1)
    with pytest.raises(ShapeError, match=f"a forward of 7 tokens.*have {BLOCK_TOKENS}"):
        session.get_kv_caches("main", seq_len=7)


def test_a_session_has_all_that_a_pipeline_may_call():
    names = {name for name in vars(ARDiffusionKVState) if not name.startswith("_")}
    assert names - {"adapter"} <= set(vars(PagedSession))  # adapters are of the manager of its blocks


def test_the_names_in_the_documentation_are_those_that_it_imports(config):
    names = re.findall(r"(pagedvid\.integrations\.vllm_omni\.\w+\.\w+)", PAGE)
    runner, pipeline = map(resolve_obj_by_qualname, sorted(set(names), reverse=True))
    assert runner is PAGED and issubclass(pipeline, SupportsARDiffusionPipeline)


def test_the_entries_in_the_documentation_are_those_of_its_stages():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    stages = [yaml.safe_load(blocks[0])["stages"][0], yaml.safe_load(blocks[1])]
    known = {each.name for each in fields(OmniDiffusionConfig)}
    assert {name for stage in stages for name in stage} <= known
