"""Sessions over pages, without vLLM-Omni: what its runner and pipelines call, in their order."""

from __future__ import annotations

import pytest
import torch

from pagedvid import CapacityError, ShapeError, StateError
from pagedvid.integrations.vllm_omni.forward import PagedForward
from pagedvid.integrations.vllm_omni.session import PagedSession, begin_joint_forward
from pagedvid.integrations.vllm_omni.session_store import SessionStore
from pagedvid.integrations.vllm_omni.settings import PagedSettings
from tests.integrations.vllm_omni.pipelines import Pipeline, kv_config

TOKENS, LAYERS = 40, 2


def store(free_bytes: int = 1 << 30, pipeline: Pipeline | None = None, **settings) -> SessionStore:
    paged = PagedSettings.read({"pagedvid": {"codecs": "fp32", **settings}})
    return SessionStore.for_pipeline(pipeline or Pipeline(), kv_config(), paged, torch.float32, "cpu", free_bytes)


def begin(session: PagedSession, branch: str = "cond", *, commit: bool) -> PagedForward:
    forward = PagedForward(session.cache, [session.next_block(branch, commit=commit)], None)
    session.begin(branch, forward)
    return forward


def run(forward: PagedForward, qkv: torch.Tensor) -> list[torch.Tensor]:
    """All layers attend: q, k and v [3, tokens, heads, channels], the same in each."""
    return [forward.attend(layer, *qkv) for layer in range(LAYERS)]


def commit(session: PagedSession, qkv: torch.Tensor, branch: str = "cond") -> None:
    run(begin(session, branch, commit=True), qkv)
    session.commit_paged_context(branch)


def dense(q: torch.Tensor, blocks: list[torch.Tensor]) -> torch.Tensor:
    """Attention over the keys and values of these blocks."""
    k, v = (torch.cat([block[place] for block in blocks]) for place in (1, 2))
    scores = torch.einsum("qhd,khd->hqk", q, k) / k.shape[-1] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


@pytest.fixture
def blocks():
    return list(torch.randn(8, 3, TOKENS, 2, 32, generator=torch.Generator().manual_seed(0)))


def test_a_rollout_sees_sinks_and_window(blocks):
    session = store().open("a")
    for number, block in enumerate(blocks):
        seen = [0, *range(max(1, number - 2), number)] if number else []
        expected = dense(block[0], [*(blocks[each] for each in seen), block])
        for out in run(begin(session, commit=False), block):
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
        commit(session, block)
    session.cache.check()


def test_branches_have_histories_of_their_own(blocks):
    session = store().open("a")
    commit(session, blocks[0])
    commit(session, blocks[1], "uncond")
    out = run(begin(session, "uncond", commit=False), blocks[2])[0]
    torch.testing.assert_close(out, dense(blocks[2][0], [blocks[1], blocks[2]]), rtol=0, atol=1e-5)


def test_two_sessions_in_one_forward(blocks):
    sessions = store()
    a, b = sessions.open("a"), sessions.open("b")
    commit(a, blocks[0])
    packed = torch.cat([blocks[1], blocks[2]], dim=1)
    out = run(begin_joint_forward([a, b], "cond"), packed)[0]
    torch.testing.assert_close(out[:TOKENS], dense(blocks[1][0], [blocks[0], blocks[1]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(out[TOKENS:], dense(blocks[2][0], [blocks[2]]), rtol=0, atol=1e-5)


def test_a_block_that_was_not_committed_leaves_no_page(blocks):
    session = store().open("a")
    run(begin(session, commit=True), blocks[0])
    with pytest.raises(StateError, match="commit_paged_context before"):
        begin(session, commit=False)
    session.close()
    assert session.cache.stats().pages_used == session.cache.stats().pages_reserved == 0
    session.cache.check()


def test_a_forward_that_broke_off_is_given_up_by_the_next_one(blocks):
    session = store().open("a")
    unfinished = begin(session, commit=False)
    unfinished.attend(0, *blocks[0])
    commit(session, blocks[1])
    assert session.streams[0].num_committed == 1
    with pytest.raises(StateError, match="has ended"):
        unfinished.attend(1, *blocks[0])


def test_sessions_of_a_joint_forward_that_broke_off_can_be_closed(blocks):
    sessions = store()
    both = [sessions.open("a"), sessions.open("b")]
    begin_joint_forward(both, "cond").attend(0, *torch.cat([blocks[0], blocks[1]], dim=1))
    for session in both:
        session.close()
    assert sessions.cache.stats().num_streams == 0


def test_a_fork_shares_pages(blocks):
    session = store().open("a")
    for block in blocks[:4]:
        commit(session, block)
    session.populate_cross_attention("cond", "text", [(torch.ones(1, 5, 2, 32),) * 2] * LAYERS)
    before = session.cache.stats().pages_used
    twin = session.fork("b")
    assert session.cache.stats().pages_used == session.cache.stats().pages_shared == before
    assert twin.is_cross_attention_populated("cond", "text")
    outs = [run(begin(each, commit=False), blocks[5])[1] for each in (session, twin)]
    assert torch.equal(*outs)
    session.close()
    twin.close()
    assert session.cache.stats().pages_used == 0


def test_a_fork_that_does_not_fit_takes_nothing(blocks):
    session = store(sessions=1).open("a")
    with pytest.raises(CapacityError):
        session.fork("b")
    assert session.cache.stats().num_streams == 2


def test_reset_begins_anew_and_keeps_the_texts_that_it_is_told_to(blocks):
    session = store().open("a")
    commit(session, blocks[0])
    session.populate_cross_attention("cond", "text", [(torch.ones(1, 5, 2, 32),) * 2] * LAYERS)
    session.reset(keep_cross_attention=("text",))
    assert session.streams[0].num_committed == 0
    assert [layer["k"].shape for layer in session.get_cross_attention_kv("cond", "text")] == [(1, 5, 2, 32)] * LAYERS
    session.clear_cross_attention()
    with pytest.raises(StateError, match="before it was stored"):
        session.get_cross_attention_kv("cond", "text")


def test_texts_that_do_not_fit_leave_the_former_one():
    session = store().open("a")
    session.populate_cross_attention("cond", "text", [(torch.ones(1, 5, 2, 32),) * 2] * LAYERS)
    for layers in ([(torch.zeros(1, 4, 2, 32),) * 2] * LAYERS, [(torch.zeros(1, 5, 2, 32),) * 2]):
        with pytest.raises(ShapeError):
            session.populate_cross_attention("cond", "text", layers)
    assert session.get_cross_attention_kv("cond", "text")[0]["k"].all()
    with pytest.raises(ShapeError, match="no cross-attention 'image'"):
        session.is_cross_attention_populated("cond", "image")


def test_as_many_sessions_as_fit():
    one = store(sessions=1)
    page_bytes = one.cache.stats().num_pages * one.cache.stats().page_bytes
    session_bytes = page_bytes + 2 * 2 * LAYERS * 5 * 2 * 32 * 4
    assert store(memory=3 * session_bytes, sessions=9).capacity == 3
    assert store(memory=3 * session_bytes - 1, sessions=9).capacity == 2
    assert store(free_bytes=20 * session_bytes).capacity == 2  # a tenth of it, as vLLM-Omni takes
    assert store(free_bytes=session_bytes).capacity == 1  # one session, if it fits at all
    with pytest.raises(CapacityError, match="a session needs"):
        store(free_bytes=session_bytes - 1)


def test_closed_sessions_and_unknown_branches():
    session = store().open("a")
    with pytest.raises(StateError, match="no guidance branch 'main'"):
        session.next_block("main", commit=False)
    session.close()
    session.close()
    with pytest.raises(StateError, match="is closed"):
        session.next_block("cond", commit=False)
