"""The tensor-level measurement: exact storage costs nothing, the correction does its work, families are as named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def scripts(scripts_on_path: None):
    import attention_error
    import families
    import fidelity
    import schemes
    import tensors
    from peers import stored

    class Scripts:
        pass

    for module in (attention_error, families, fidelity, schemes, tensors, stored):
        setattr(Scripts, module.__name__.removeprefix("peers."), module)
    return Scripts


def small(scripts, name: str = "low rank", seed: int = 0):
    return scripts.families.draw_family(name, seed, num_chunks=2, num_frames=3, frame_tokens=40)


def test_exact_storage_changes_nothing(scripts):
    def exact(x, layer):
        return scripts.stored.Stored(x, 32.0, torch.zeros(x.shape[0], x.shape[2]))

    sample = small(scripts)
    stored = scripts.attention_error.store(scripts.schemes.Scheme("exact", exact, exact), sample)
    for quantities in scripts.attention_error.measure(sample, stored, 0).values():
        for by_head in quantities.values():
            torch.testing.assert_close(by_head, torch.zeros(2), atol=1e-5, rtol=0)


def test_independent_noise_gains_mass_and_corrections_give_it_back(scripts):
    generator = torch.Generator().manual_seed(0)

    def noisy(x, layer):
        step = 0.8 * x.std()
        noise = (torch.rand(x.shape, generator=generator) - 0.5) * step
        return scripts.stored.Stored(x + noise, 2.0, (step**2).expand(x.shape[0], x.shape[2]))

    def exact(x, layer):
        return scripts.stored.Stored(x, 32.0)

    sample = scripts.families.draw_family("full rank, no redundancy", 0, num_chunks=2, num_frames=3, frame_tokens=150)
    stored = scripts.attention_error.store(scripts.schemes.Scheme("noisy", noisy, exact), sample)
    measured = scripts.attention_error.measure(sample, stored, 0)
    shift = {correction: float(values["dlogZ"].mean()) for correction, values in measured.items()}
    assert shift["off"] > 0.04
    assert abs(shift["formula"]) < 0.3 * shift["off"] and abs(shift["variance"]) < 0.3 * shift["off"]
    # Queries of the commit pass find their own tokens among these keys; later queries do not, and need more.
    assert 0 < shift["measured"] < shift["off"]


def test_the_capture_is_what_the_model_attends_to(scripts, weights: Path):
    from pagedvid.models.demo.captions import caption
    from pagedvid.models.demo.model import DemoModel
    from pagedvid.models.demo.world import random_scene

    model = DemoModel.load(weights)
    text = caption(random_scene(np.random.default_rng(0)))
    samples = scripts.tensors.capture(model, text, 3, num_cached_chunks=2, num_steps=2)
    size = model.geometry.chunk_tokens
    assert len(samples) == model.geometry.num_layers
    assert samples[1].k_CHTD.shape == samples[1].commit_q_CHTD.shape == (2, 1, size, 64)
    assert samples[1].q_LHTD.shape == (2, 1, size, 64) and samples[1].layer == 1
    again = scripts.tensors.capture(model, text, 3, num_cached_chunks=2, num_steps=2)
    assert torch.equal(again[1].v_CHTD, samples[1].v_CHTD)
    longer = scripts.tensors.capture(model, text, 3, num_cached_chunks=3, num_steps=2)
    torch.testing.assert_close(longer[1].k_CHTD[:2], samples[1].k_CHTD)


def test_families_are_as_their_names_say(scripts):
    def share_of_previous_frame(sample):
        frames = sample.v_CHTD[0].unflatten(1, (3, 40))
        return float((frames[:, 1:] - frames[:, :-1]).square().mean() / frames.var())

    assert share_of_previous_frame(small(scripts, "static scene")) < 0.1
    assert share_of_previous_frame(small(scripts, "full rank, no redundancy")) > 1.5
    deviation = small(scripts, "outlier channels").k_CHTD.flatten(0, 2).square().mean(0).sqrt()
    assert int((deviation > 4 * deviation.median()).sum()) == 4
    heavy, plain = (small(scripts, name).v_CHTD for name in ("heavy tails", "fast scene"))
    assert float((heavy.abs().amax() / heavy.std()) / (plain.abs().amax() / plain.std())) > 1.5


def test_videos_of_a_family_share_a_model_but_no_token(scripts):
    first, second = small(scripts, seed=0), small(scripts, seed=1)
    assert not torch.equal(first.k_CHTD, second.k_CHTD)
    _, _, basis = torch.linalg.svd(first.v_CHTD[:, 0].flatten(0, 1), full_matrices=False)
    outside = second.v_CHTD[:, 0].flatten(0, 1) @ basis[6:].T
    assert float(outside.norm() / second.v_CHTD[:, 0].norm()) < 0.3


def test_the_transform_codec_beats_equal_bits_where_there_is_something_to_share(scripts):
    calibration = [[small(scripts, seed=seed)] for seed in range(2)]
    layers = [list(samples) for samples in zip(*calibration, strict=True)]
    klt = scripts.schemes.klt_scheme(layers, 42, 36, 3, "klt")
    channel = scripts.schemes.own_schemes(64)[0]
    measured = [[small(scripts, seed=9)]]
    results = [scripts.fidelity.measure_scheme(scheme, measured) for scheme in (klt, channel)]
    assert results[0]["bits"] == results[1]["bits"]  # 120 tokens in one page either way
    errors = [sum(map(sum, result["values"]["off"]["error"])) for result in results]
    assert errors[0] < 0.5 * errors[1]


def test_scripts_write_what_they_print(scripts, tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(scripts.fidelity, "draw_family", lambda name, seed: small(scripts, name, seed))
    out = tmp_path / "fidelity.json"
    families = ["--families", "low rank", "--prompts", "1", "--calibration-prompts", "1"]
    scripts.fidelity.main([*families, "--out", str(out)])
    printed = capsys.readouterr().out
    assert "klt18" in printed and "QVG-Pro tern" in printed and out.is_file()
