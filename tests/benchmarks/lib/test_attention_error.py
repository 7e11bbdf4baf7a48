"""Errors and corrections: exact storage changes nothing, corrections take back the mass that quant errors gain."""

from __future__ import annotations

import pytest
import torch

from lib.attention_error import measure, store
from lib.corrections import CORRECTIONS, factored, formula, granularities, samplings
from lib.samples import draw_family
from lib.schemes import Scheme, peer_scheme
from pagedvid.correction.fit import log_mass_shift
from peers import Stored
from peers.catalogue import peers


def erring_scheme(keys_rotated: bool, spread: float = 0.8) -> Scheme:
    """Uniform quant errors of keys, independent of everything; values are exact."""
    generator = torch.Generator().manual_seed(0)

    def store(kind, layer, x):
        if kind == "values":
            return Stored(x, 32.0)
        step_size = spread * x.std()
        quant_error = (torch.rand(x.shape, generator=generator) - 0.5) * step_size
        return Stored(x + quant_error, 2.0, (step_size**2).expand(x.shape))

    return Scheme("erring", store, keys_rotated)


def test_exact_storage_changes_nothing():
    def exact(kind, layer, x):
        return Stored(x, 32.0, torch.zeros(x.shape))

    sample = draw_family("low rank", 0, num_chunks=2, num_frames=3, frame_tokens=40)
    readout = store(Scheme("exact", exact, False), sample)
    for quantities in measure(readout, 0).values():
        for by_head in quantities.values():
            torch.testing.assert_close(by_head, torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keys_rotated", [False, True])
def test_independent_quant_errors_gain_mass_and_corrections_take_it_back(keys_rotated):
    sample = draw_family("full rank, no redundancy", 0, num_chunks=2, num_frames=3, frame_tokens=150)
    readout = store(erring_scheme(keys_rotated), sample)
    every = CORRECTIONS | granularities(128)
    measured = measure(readout, 0, every)
    shift = {name: float(values["dlogZ"].mean()) for name, values in measured.items()}
    assert shift["off"] > 0.04
    for name in ("formula", "exact", "variance", *granularities(128)):
        assert abs(shift[name]) < 0.3 * shift["off"]
    # Queries of the commit pass find their own tokens among these keys, which misleads a fit to log Z.
    assert abs(shift["measured"]) < 0.3 * shift["off"]
    assert shift["measured"] < shift["log Z"] < shift["off"]


def test_granularities_agree_where_all_step_sizes_are_the_same():
    sample = draw_family("low rank", 0, num_chunks=2, num_frames=3, frame_tokens=40)
    readout = store(erring_scheme(True, spread=0.1), sample)
    q = sample.rotated(sample.q_LHTD[0], -1)[:, ::16]
    whole = torch.zeros(2, 2, q.shape[1], 120)
    first, *others = (correct(readout, q) + whole for correct in granularities(50).values())
    for shift in others:
        torch.testing.assert_close(shift, first, rtol=0.02, atol=1e-6)
    half = factored(0.5)(readout, q)
    torch.testing.assert_close(2 * half, formula(readout, q))


def test_a_fit_to_log_z_is_least_squares_and_the_measured_factor_is_another():
    """The queries are those of the fit: of the commit pass, at the positions of the next chunk."""
    sample = draw_family("static scene", 0, num_chunks=1, num_frames=3, frame_tokens=40)
    readout = store(erring_scheme(True, spread=1.5), sample)
    q = sample.rotated(sample.commit_q_CHTD[0], 1)
    exact, stored = readout.exact_k_CHTD[0], readout.stored.k_CHTD[0]
    true = log_mass_shift(q, exact, stored, readout.scale)
    predicted = formula(readout, q)[0, ..., 0]
    corrections = samplings((16,))
    left = true - corrections["log Z, all"](readout, q)[0, ..., 0]
    assert float((left * predicted).sum(-1).abs().max()) < 1e-3 * float((true * predicted).sum(-1).abs().max())
    few, every = (corrections[f"measured, {name}"](readout, q) for name in ("16", "all"))
    assert not torch.equal(few, every) and not torch.equal(few, corrections["log Z, 16"](readout, q))


def test_schemes_without_step_sizes_have_no_formula():
    peer = next(peer for peer in peers(120, 64) if peer.name == "TurboQuant2")
    sample = draw_family("low rank", 0, num_chunks=2, num_frames=3, frame_tokens=40)
    readout = store(peer_scheme(peer), sample)
    assert list(measure(readout, 0)) == ["off", "variance", "measured", "log Z"]


def test_hadamard_step_sizes_meet_the_rotated_query():
    """b of QuaRot uses its own axes; with an outlier in q, plain channels would give another one."""
    peer = next(peer for peer in peers(120, 64) if peer.name == "QuaRot2 g64")
    sample = draw_family("fast scene", 0, num_chunks=1, num_frames=3, frame_tokens=100)
    readout = store(peer_scheme(peer), sample)
    q = torch.zeros(2, 1, 64)
    q[..., 3] = 4.0
    square = readout.squares(q)
    torch.testing.assert_close(square, torch.full((2, 1, 64), 0.25))
