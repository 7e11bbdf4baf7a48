"""Errors and corrections at the tensor level: exact storage costs nothing, corrections give back what noise gained."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def scripts(scripts_on_path: None):
    from types import SimpleNamespace

    import attention_error
    import corrections
    import families
    import schemes
    from peers import stored

    return SimpleNamespace(
        attention_error=attention_error, corrections=corrections, families=families, schemes=schemes, stored=stored
    )


def noisy_scheme(scripts, keys_rotated: bool, spread: float = 0.8):
    """Uniform noise that is independent of everything; values are exact."""
    generator = torch.Generator().manual_seed(0)

    def store(kind, layer, x):
        if kind == "values":
            return scripts.stored.Stored(x, 32.0)
        step = spread * x.std()
        noise = (torch.rand(x.shape, generator=generator) - 0.5) * step
        return scripts.stored.Stored(x + noise, 2.0, (step**2).expand(x.shape))

    return scripts.schemes.Scheme("noisy", store, keys_rotated)


def test_exact_storage_changes_nothing(scripts):
    def exact(kind, layer, x):
        return scripts.stored.Stored(x, 32.0, torch.zeros(x.shape))

    sample = scripts.families.draw_family("low rank", 0, num_chunks=2, num_frames=3, frame_tokens=40)
    readout = scripts.attention_error.store(scripts.schemes.Scheme("exact", exact, False), sample)
    for quantities in scripts.attention_error.measure(readout, 0).values():
        for by_head in quantities.values():
            torch.testing.assert_close(by_head, torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keys_rotated", [False, True])
def test_independent_noise_gains_mass_and_corrections_give_it_back(keys_rotated, scripts):
    sample = scripts.families.draw_family("full rank, no redundancy", 0, num_chunks=2, num_frames=3, frame_tokens=150)
    readout = scripts.attention_error.store(noisy_scheme(scripts, keys_rotated), sample)
    every = scripts.corrections.CORRECTIONS | scripts.corrections.granularities(128)
    measured = scripts.attention_error.measure(readout, 0, every)
    shift = {name: float(values["dlogZ"].mean()) for name, values in measured.items()}
    assert shift["off"] > 0.04
    for name in ("formula", "exact", "variance", *scripts.corrections.granularities(128)):
        assert abs(shift[name]) < 0.3 * shift["off"]
    # Queries of the commit pass find their own tokens among these keys, which mislead a fit to log Z.
    assert abs(shift["measured"]) < 0.3 * shift["off"]
    assert shift["measured"] < shift["log Z"] < shift["off"]


def test_granularities_agree_where_all_steps_are_the_same(scripts):
    sample = scripts.families.draw_family("low rank", 0, num_chunks=2, num_frames=3, frame_tokens=40)
    readout = scripts.attention_error.store(noisy_scheme(scripts, True, spread=0.1), sample)
    q = sample.rotated(sample.q_LHTD[0], -1)[:, ::16]
    whole = torch.zeros(2, 2, q.shape[1], 120)
    first, *others = (correct(readout, q) + whole for correct in scripts.corrections.granularities(50).values())
    for shift in others:
        torch.testing.assert_close(shift, first, rtol=0.02, atol=1e-6)
    half = scripts.corrections.factored(0.5)(readout, q)
    torch.testing.assert_close(2 * half, scripts.corrections.formula(readout, q))


def test_a_fit_to_log_z_is_least_squares_and_the_measured_factor_is_another(scripts):
    """The queries are those that it is fitted to: of the commit pass, where those of the next chunk will stand."""
    sample = scripts.families.draw_family("static scene", 0, num_chunks=1, num_frames=3, frame_tokens=40)
    readout = scripts.attention_error.store(noisy_scheme(scripts, True, spread=1.5), sample)
    q = sample.rotated(sample.commit_q_CHTD[0], 1)
    exact, stored = readout.exact_k_CHTD[0], readout.stored.k_CHTD[0]
    from pagedvid.correction.fit import log_mass_shift

    true = log_mass_shift(q, exact, stored, readout.scale)
    predicted = scripts.corrections.formula(readout, q)[0, ..., 0]
    corrections = scripts.corrections.samplings((16,))
    left = true - corrections["log Z, all"](readout, q)[0, ..., 0]
    assert float((left * predicted).sum(-1).abs().max()) < 1e-3 * float((true * predicted).sum(-1).abs().max())
    few, every = (corrections[f"measured, {name}"](readout, q) for name in ("16", "all"))
    assert not torch.equal(few, every) and not torch.equal(few, corrections["log Z, 16"](readout, q))


def test_schemes_without_steps_have_no_formula(scripts):
    peer = next(peer for peer in scripts.schemes.peers(120, 64) if peer.name == "TurboQuant2")
    sample = scripts.families.draw_family("low rank", 0, num_chunks=2, num_frames=3, frame_tokens=40)
    readout = scripts.attention_error.store(scripts.schemes.peer_scheme(peer), sample)
    assert list(scripts.attention_error.measure(readout, 0)) == ["off", "variance", "measured", "log Z"]


def test_hadamard_steps_meet_the_rotated_query(scripts):
    """b of QuaRot by its own axes is what the noise does; by plain channels it would not be with an outlier in q."""
    peer = next(peer for peer in scripts.schemes.peers(120, 64) if peer.name == "QuaRot2 g64")
    sample = scripts.families.draw_family("fast scene", 0, num_chunks=1, num_frames=3, frame_tokens=100)
    readout = scripts.attention_error.store(scripts.schemes.peer_scheme(peer), sample)
    q = torch.zeros(2, 1, 64)
    q[..., 3] = 4.0
    square = readout.squares(q)
    torch.testing.assert_close(square, torch.full((2, 1, 64), 0.25))
