"""The training script end to end on a tiny network, and the attention it trains with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import demo_batches
import train_demo
from pagedvid.models.demo.network import demo_rotary
from pagedvid.models.demo.weights import load_demo
from pagedvid.models.demo.world import Scene, Thing
from pagedvid.rotary.tables import rotate
from tests.tools.cut_runs import trained

TINY = ["--layers", "1", "--width", "64", "--chunks-per-batch", "3", "--threads", "1"]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Training sets the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_two_steps_resume_and_export(tmp_path: Path) -> None:
    run, weights = tmp_path / "run", tmp_path / "weights"
    train_demo.main([*TINY, "--steps", "2", "--out", str(run)])
    train_demo.main([*TINY, "--steps", "3", "--out", str(run), "--resume"])
    train_demo.main(["--out", str(run), "--export", str(weights)])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert json.loads((weights / "config.json").read_text())["training"]["steps"] == 3
    assert load_demo(weights).geometry.num_layers == 1


def test_a_cut_run_that_is_resumed_ends_like_a_whole_one(tmp_path: Path) -> None:
    whole, cut = (trained(train_demo, TINY, tmp_path / f"{len(stops)}", stops) for stops in ([4], [2, 4]))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, cut.model.state_dict()[name]), name


@pytest.mark.parametrize("extra", [[], ["--steps", "2", "--minutes", "1"]])
def test_a_run_needs_exactly_one_length(extra: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train_demo.main(extra)
    assert "exactly one of --minutes and --steps" in capsys.readouterr().err


def test_batches_are_decided_by_the_generator_and_hold_a_constant_load() -> None:
    for seed in range(12):
        batch, again = (demo_batches.make_batch(np.random.default_rng(seed), 24) for _ in range(2))
        assert torch.equal(batch.clean_BISC, again.clean_BISC) and torch.equal(batch.slots_BK, again.slots_BK)
        clips, chunks = batch.clean_BISC.shape[:2]
        assert 20 <= clips * (2 * chunks - 1) <= 28
        assert batch.clean_BISC.abs().max() <= 1
        assert batch.weight_BISC.shape == batch.clean_BISC.shape


def test_pixels_around_a_thing_weigh_more() -> None:
    scene = Scene((Thing("cross", "red", "small", "still", 10, 20),), "black")
    (weight,) = demo_batches.loss_weight(scene, np.zeros(1))
    assert weight.dtype == np.float32
    assert weight[16:24, 6:14].min() == demo_batches.BOX_WEIGHT and weight[20, 18] == 1 and weight[0, 0] == 1


def test_plain_attention_is_scaled_attention() -> None:
    q, k, v = torch.randn(2, 3, 5, 64), torch.randn(2, 3, 7, 64), torch.randn(2, 3, 7, 64)
    assert torch.allclose(demo_batches.plain_attention(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("num_chunks", [1, 2, 3])
def test_training_attention_is_dense_attention_with_the_block_triangular_mask(num_chunks: int) -> None:
    size, clips, heads = 128, 2, 2
    rope = demo_rotary(16, 4, 4)
    attend = demo_batches.BlockTriangularAttention(rope, num_chunks, size, torch.device("cpu"))
    order = [("clean", i) for i in range(num_chunks - 1)] + [("noisy", i) for i in range(num_chunks)]
    q, k, v = torch.randn(3, clips, len(order) * size, heads, 16)
    out = attend(0, *(x.reshape(-1, heads, 16) for x in (q, k, v))).view(q.shape)
    cos, sin = (torch.cat([rope.tables(i * size, size)[part] for _, i in order]).unsqueeze(1) for part in (0, 1))
    sees = torch.tensor([[a == b or (b[0] == "clean" and b[1] < a[1]) for b in order] for a in order])
    mask = sees.repeat_interleave(size, 0).repeat_interleave(size, 1)
    expected = F.scaled_dot_product_attention(
        rotate(q, cos, sin).transpose(1, 2),
        rotate(k, cos, sin).transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
    )
    assert torch.allclose(out, expected.transpose(1, 2), atol=1e-5)
