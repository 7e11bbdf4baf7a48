"""The correction's b from every codec's step sizes, against the true shift of log-mean-exp of its stored keys, in
float64, over many tokens and queries.

The formula assumes errors that are uniform and independent of the keys. It is tried on two kinds of keys:

- smooth: sums of three uniform variables, each one step size wide, well inside the grid. The characteristic function of
  such keys vanishes to third order wherever quantization folds it back (Widrow's condition), so that the assumption
  holds as far as b reaches, at any number of bits: b must agree within 2 %.
- Gaussian: the grid ends at the keys' own extremes, which are rounded outwards, and at 2 bits the step size exceeds
  the keys' standard deviation. Mass grows by more than b, up to 35 %; the change of variance predicts it within 5 %.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.hadamard import hadamard_matrix
from pagedvid.correction.formula import bias
from pagedvid.rotary.tables import pair_mean_square, rotate
from tests.codecs.page_reader import decode

D = 64
PAGE = PageFormat(D)
SCALE = D**-0.5
NUM_TOKENS = 20_000


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_mean_exp(q_QD: Tensor, k_nD: Tensor) -> Tensor:
    return (q_QD.double() @ k_nD.double().T * SCALE).logsumexp(-1)


def round_trip(name: str, k_nD: Tensor) -> tuple[Codec, Tensor, Tensor]:
    """(codec, records, stored keys [n, D])."""
    codec = CodecBook(PAGE, 1).codec(read_codec(name), "keys", 0, (0,))
    records = codec.encode(k_nD[None])
    return codec, records, decode(codec, PAGE, records, len(k_nD))[0]


def shift_and_bias(
    name: str, k_nD: Tensor, q_QD: Tensor, counted: Tensor | None = None, angles: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Shift of log-mean-exp over the `counted` tokens, and b, both [Q]. With `angles` [n, D/2], keys rotate after they
    were stored."""
    codec, records, stored = round_trip(name, k_nD)
    keys = [k_nD, stored]
    if angles is not None:
        keys = [rotate(k, angles.cos(), angles.sin()) for k in keys]
    exact, quantized = (log_mean_exp(q_QD, k if counted is None else k[counted]) for k in keys)
    along = q_QD if codec.axes is None else q_QD @ codec.axes.T
    q_square = along.square() if angles is None else pair_mean_square(along)
    return quantized - exact, bias(q_square, codec.mean_square_step_sizes(records, len(k_nD))[0], SCALE).double()


def queries() -> Tensor:
    """Each with its opposite, so that the effect of errors to first order, which is chance, cancels."""
    q = torch.randn(32, D, generator=generator(1))
    return torch.cat([q, -q])


def random_angles() -> Tensor:
    return 6.28 * torch.rand(NUM_TOKENS, D // 2, generator=generator(5))


def smooth() -> Tensor:
    """[NUM_TOKENS, D] in units of a step size, three wide. Around zero, the middle of the grid, since an offset would
    rotate with the keys and outweigh their errors."""
    return (torch.rand(3, NUM_TOKENS, D, generator=generator(0)) - 0.5).sum(0)


def smooth_on_channel_grids(name: str, step_size_D: Tensor) -> tuple[Tensor, Tensor]:
    """Keys, two tokens a page being the ends of the grid, and which tokens are the others."""
    end, page_tokens = (2 ** int(read_codec(name).bits) - 1) / 2, read_codec(name).page_tokens(PAGE)
    k = smooth()
    is_low, is_high = (torch.arange(NUM_TOKENS) % page_tokens == i for i in (0, 1))
    k[is_low], k[is_high] = -end, end
    return k * step_size_D, ~(is_low | is_high)


CHANNEL = [f"int{bits}{options}" for bits in (2, 4, 8) for options in ("", "-pair", "-s8", "-pair-s8")]


@pytest.mark.parametrize("name", [f"{name}-post" for name in CHANNEL])
def test_smooth_keys_of_channel_codecs_shift_as_predicted(name):
    # Step sizes that fp16 and, as powers of two, 8 bits hold exactly; pairs share them.
    step_size_D = 2.0 ** -(torch.arange(D) % (D // 2) % 3)
    k, counted = smooth_on_channel_grids(name, step_size_D)
    q = 2 * queries()
    shift, b = shift_and_bias(name, k, q, counted)
    assert float(b.mean()) > 0.003
    assert float(shift.mean() / b.mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", ["int2-pair", "int4-pair-s8", "int2", "int8-s8"])
def test_smooth_keys_that_rotate_after_storage_shift_as_predicted(name):
    """The step sizes of a pair differ if the codec allows it: b is then the average over angles."""
    has_pairs = read_codec(name).by_pair
    step_size_D = 2.0 ** -(torch.arange(D) % (D // 2) % 3 if has_pairs else torch.arange(D) % 3.0)
    k, counted = smooth_on_channel_grids(name, step_size_D)
    q = 2 * queries()
    shift, b = shift_and_bias(name, k, q, counted, random_angles())
    assert float(shift.mean() / b.mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("family", ["token2", "token4", "token8", "hadamard2", "hadamard4", "hadamard8"])
def test_smooth_keys_of_token_codecs_shift_as_predicted(family, group):
    """Two channels of a group hold the ends of its grid exactly, and the queries are zero there. Queries are small,
    since large ones would give more weight to large tokens, which have large step sizes."""
    name = f"{family}-g{group}"
    end = (2 ** int(read_codec(name).bits) - 1) / 2
    is_end = torch.arange(D) % group < 2
    k = smooth()
    k[:, is_end] = end * (2.0 * (torch.arange(D) % group)[is_end] - 1)
    k *= 2.0 ** -(torch.arange(NUM_TOKENS)[:, None] % 3)  # step sizes differ by token
    q = 0.5 * queries() * ~is_end
    if family.startswith("hadamard"):  # so that all this holds after rotation
        k, q = k @ hadamard_matrix(D), q @ hadamard_matrix(D)
    shift, b = shift_and_bias(name, k, q)
    assert float(b.mean()) > 0.003
    assert float(shift.mean() / b.mean()) == pytest.approx(1.0, abs=0.02)


def test_a_step_size_per_key_corrects_what_their_mean_cannot():
    """Under large queries the large keys, which have large step sizes, carry the mass."""
    is_end = torch.arange(D) % 16 < 2
    k = smooth()
    k[:, is_end] = 1.5 * (2.0 * (torch.arange(D) % 16)[is_end] - 1)
    k *= 2.0 ** -(torch.arange(NUM_TOKENS)[:, None] % 3)
    q = 2 * queries() * ~is_end
    shift, b = shift_and_bias("token2-g16", k, q)
    assert float(shift.mean() / b.mean()) > 1.15
    codec, records, stored = round_trip("token2-g16", k)
    square_step_size_nG = codec.token_step_sizes(records, NUM_TOKENS)[0].square()
    b_Qn = q.square().unflatten(-1, (-1, 16)).sum(-1) @ square_step_size_nG.T * (SCALE**2 / 24)
    corrected = (q.double() @ stored.double().T * SCALE - b_Qn).logsumexp(-1)
    assert float((corrected - log_mean_exp(q, k)).mean() / shift.mean()) == pytest.approx(0.0, abs=0.02)


GAUSSIAN = {
    **{f"int{bits}{options}-post": 1.15 for bits in (2, 4) for options in ("", "-pair", "-s8", "-pair-s8")},
    **{f"{family}{bits}-g64": 1.15 for bits in (2, 4) for family in ("token", "hadamard")},
    **{f"{family}{bits}-g16": 1.35 for bits in (2, 4) for family in ("token", "hadamard")},
}
"""The largest ratio of shift to b."""


@pytest.mark.parametrize(("name", "most"), GAUSSIAN.items())
def test_gaussian_keys_shift_by_somewhat_more_than_predicted(name, most):
    k = torch.randn(NUM_TOKENS, D, generator=generator(0))
    shift, b = shift_and_bias(name, k, queries())
    assert 1.0 < float(shift.mean() / b.mean()) < most


@pytest.mark.parametrize("name", GAUSSIAN)
def test_gaussian_keys_shift_as_their_change_of_variance_predicts(name):
    """It accounts for the extremes. Queries are small, so that only variances count."""
    k, q = torch.randn(NUM_TOKENS, D, generator=generator(0)), 0.5 * queries()
    stored = round_trip(name, k)[2]
    b = bias(q.square(), 12 * (stored.var(0) - k.var(0)), SCALE)
    shift = log_mean_exp(q, stored) - log_mean_exp(q, k)
    assert float(shift.mean() / b.mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", ["int8-post", "int8-pair-s8-post", "token8-g16", "token8-g64", "hadamard8-g16"])
def test_gaussian_keys_of_8_bits_need_no_correction(name):
    """Their extremes, rounded outwards to fp16, add more than b does; both are negligible."""
    k = torch.randn(NUM_TOKENS, D, generator=generator(0))
    shift, b = shift_and_bias(name, k, queries())
    assert 0 < float(b.mean()) < 1e-4
    assert float(shift.abs().max()) < 1e-3
