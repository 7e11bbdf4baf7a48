"""The merge of all partials of a layer, with the correction inside, against float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.attention import merge as merge_module
from pagedvid.attention.merge import lse_shifts, merge
from pagedvid.correction.formula import HOT_CHANNEL_X
from tests.attention.partials import Case, Partial, dense_partial, merged

SHAPES = [(1, 1, 1, 1, 1, 32), (2, 3, 17, 2, 3, 32), (1, 6, 40, 1, 1, 128), (3, 13, 5, 2, 1, 64)]
"""(E, J, T, H, G, D)."""


def run(case: Case, dtype: torch.dtype = torch.float32, *, corrected: bool = True) -> Tensor:
    out = torch.full(case.own[0].shape, torch.nan, dtype=dtype)
    bias = case.bias if corrected else None
    merge(case.own, [case.others], out, bias=bias, q_EVTHD=case.q_EVTHD, scale=case.scale)
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_a_result_may_be_a_partial_itself(shape):
    """Merged in two rounds, as where the scratch does not hold all partials."""
    case = Case.draw(shape)
    out, lse = torch.empty(case.own[0].shape), torch.empty(case.own[1].shape)
    (outs, lses), cut = case.others, case.others[0].shape[1] // 2
    merge(case.own, [(outs[:, :cut], lses[:, :cut])] if cut else [(outs, lses)], out, lse_ETH=lse)
    if cut:
        merge((out.clone(), lse.clone()), [(outs[:, cut:], lses[:, cut:])], out, lse_ETH=lse)
    torch.testing.assert_close(out, run(case, corrected=False), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, torch.cat([case.own[1].unsqueeze(1), lses], 1).logsumexp(1), rtol=1e-6, atol=1e-6)


def merge_list(partials: list[Partial]) -> Tensor:
    """Partials (out [T, D], lse [T]), the first as a range's own."""
    outs, lses = (torch.stack(x).unsqueeze(2) for x in zip(*partials, strict=True))
    out = torch.empty(1, *outs.shape[1:])
    merge((outs[:1], lses[:1]), [(outs[None, 1:2], lses[None, 1:2]), (outs[None, 2:], lses[None, 2:])], out)
    return out[0, :, 0]


# ---------------------------------------------------------------------- attention


@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from([0.1, 1.0, 30.0]), st.permutations(range(7)))
def test_any_parts_in_any_order_are_attention_over_all_keys(cuts, size, order):
    """I13. `cuts` may leave parts without keys."""
    q, k, v = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0))
    q = q[:5] * size
    parts = [dense_partial(q, k[a:b], v[a:b]) for a, b in itertools.pairwise([0, *sorted(cuts), 40])]
    got = merge_list([parts[i] for i in order if i < len(parts)])
    torch.testing.assert_close(got, dense_partial(q, k, v)[0], rtol=1e-5, atol=1e-5)


def test_lowering_the_lse_takes_mass_away():
    """The correction: `lse -= b` on a partial is b off the score of each of its keys."""
    q, k, v = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    b = torch.rand(20)
    (out, lse), current = dense_partial(q, k[:12], v[:12]), dense_partial(q, k[12:], v[12:])
    scores = q.double() @ k.double().mT
    scores[:, :12] -= b.double()[:, None]
    torch.testing.assert_close(
        merge_list([current, (out, lse - b)]).double(), scores.softmax(-1) @ v.double(), rtol=1e-5, atol=1e-6
    )


# ---------------------------------------------------------------------- b


@pytest.mark.parametrize("hot", [0, 1, 5])
@pytest.mark.parametrize("pairs", ["all", "none", "mixed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shift_is_alpha_times_b(shape, pairs, hot):
    for alpha, num_variants in ((True, 1), (False, 3)):
        case = Case.draw(shape, hot=hot, pairs=pairs, alpha=alpha, num_variants=num_variants)
        exact = case.exact_shift()
        found = lse_shifts(case.bias, case.q_EVTHD, case.scale).double()
        # Gains and losses of variance may cancel, so b of the gains alone is what 1 % is of.
        gains = replace(case.bias, square_EJHD=case.bias.square_EJHD.clamp(min=0))
        size = replace(case, bias=gains).exact_shift()
        assert float(((found - exact).abs() - HOT_CHANNEL_X**2 / 30 * 1.01 * size).max()) < 1e-4
        assert shape[1] == 1 or not found[:, 0].any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_extreme_step_sizes(scale):
    """x of 192 was seen; here up to 1000."""
    case = Case.draw((1, 2, 9, 2, 1, 32), hot=3)
    case.bias.square_EJHD.mul_(scale)
    exact = case.exact_shift()
    found = lse_shifts(case.bias, case.q_EVTHD, case.scale)
    torch.testing.assert_close(found.double(), exact, rtol=0.01, atol=1e-3 * scale)


# ---------------------------------------------------------------------- the merge


@pytest.mark.parametrize("head_major", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_merge_is_that_of_float64(shape, dtype, head_major, monkeypatch):
    case = Case.draw(shape, dtype=dtype, hot=2, head_major=head_major, pairs="mixed", num_variants=2)
    shift = lse_shifts(case.bias, case.q_EVTHD, case.scale)
    for corrected in (True, False):
        expected = case.expected(shift if corrected else None)
        whole = run(case, corrected=corrected)
        torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(run(case, dtype, corrected=corrected), whole.to(dtype))
        monkeypatch.setattr(merge_module, "BLOCK_ELEMENTS", 7 * shape[0] * shape[3] * shape[4] * shape[5])
        assert torch.equal(run(case, corrected=corrected), whole)
        monkeypatch.undo()


def test_no_keys_are_no_weight():
    case = Case.draw((2, 3, 7, 2, 1, 32))
    case.own[1][:, 2] = case.own[1][:, 3] = -torch.inf
    case.others[1][:, 1] = case.others[1][:, :, 3] = -torch.inf
    got = run(case)
    assert (got[:, 3] == 0).all()  # nobody has keys
    assert torch.isfinite(got).all()
    shift = lse_shifts(case.bias, case.q_EVTHD, case.scale)
    rows = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(got[:, rows].double(), case.expected(shift)[:, rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 3e4, 1e30])
def test_lse_of_any_size(size):
    case = Case.draw((1, 3, 7, 2, 1, 32))
    case.own[1].mul_(size)
    case.others[1].mul_(size)
    expected = case.expected(case.exact_shift())
    torch.testing.assert_close(run(case).double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head_major", [True, False])
@pytest.mark.parametrize("shape", [(5, 4, 23, 3, 2, 32), (3, 1, 1000, 4, 1, 64), (16, 6, 48, 4, 1, 32)])
def test_no_result_of_a_range_depends_on_the_others(shape, head_major):
    """Bitwise: a video is the same alone and in a batch, also if other videos have outlier channels."""
    for pairs in ("all", "none"):
        case = Case.draw(shape, pairs=pairs, head_major=head_major)
        case.bias.square_EJHD[::2, :, 1, 4:11] = 500.0
        case.bias.square_EJHD[1, -1, 0, 7] = 400.0
        together = run(case)
        for number in range(shape[0]):
            one = slice(number, number + 1)
            assert case.bias.alpha_EJH is not None
            bias = replace(case.bias, square_EJHD=case.bias.square_EJHD[one], alpha_EJH=case.bias.alpha_EJH[one])
            own, others = (tuple(x[one] for x in partial) for partial in (case.own, case.others))
            assert torch.equal(run(Case(own, others, bias, case.q_EVTHD[one], case.scale)), together[one])


def test_inputs_are_left_alone():
    case = Case.draw((1, 2, 7, 1, 1, 32), hot=1)
    tensors = [*case.own, *case.others, case.q_EVTHD, case.bias.square_EJHD]
    copies = [x.clone() for x in tensors]
    run(case)
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))


def test_the_oracle_merges():
    q, k, v = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    out, lse = merged([dense_partial(q, k[:12], v[:12]), dense_partial(q, k[12:], v[12:])])
    whole = dense_partial(q, k, v)
    torch.testing.assert_close(out.float(), whole[0])
    torch.testing.assert_close(lse.float(), whole[1])
