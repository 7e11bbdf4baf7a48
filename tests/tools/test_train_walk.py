"""The training of the walk model end to end on a tiny network: outings, batches, attention, resumption, checks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train_walk
import training
import walk_batches
import walk_check
from pagedvid.models.walk.actions import MOVES, read_walk
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.rotary import WorldRotary, position_of
from pagedvid.models.walk.spec import TOKENS_PER_FRAME, VIEW_CELLS, cells_of
from pagedvid.models.walk.weights import load_walk
from pagedvid.rotary.tables import rotate
from tests.tools.cut_runs import trained

TINY = ["--layers", "1", "--width", "64", "--maps-per-batch", "1", "--chunks-per-map", "3", "--threads", "1"]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Training sets the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_two_steps_resume_export_and_check(tmp_path: Path):
    run, weights = tmp_path / "run", tmp_path / "weights"
    train_walk.main([*TINY, "--steps", "2", "--out", str(run)])
    train_walk.main([*TINY, "--steps", "3", "--out", str(run), "--resume"])
    train_walk.main(["--out", str(run), "--export", str(weights)])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert json.loads((weights / "config.json").read_text())["training"]["steps"] == 3
    scores = walk_check.outing_scores(load_walk(weights), 9, [0, 1])
    assert scores["frames_away"] == 8 and scores["landmarks"] > 0
    assert 0 <= scores["revisited"] <= 1 and np.isfinite(scores["revisited_psnr"])


def test_a_run_is_not_lost_by_a_wrong_flag(tmp_path: Path, capsys: pytest.CaptureFixture):
    run = ["--out", str(tmp_path / "run")]

    def refused(*flags: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            train_walk.main([*TINY, *run, *flags])
        return capsys.readouterr().err + str(exit_.value)

    assert "has no checkpoint.pt to go on from" in refused("--resume", "--steps", "2")
    assert "has no checkpoint.pt to go on from" in refused("--export", str(tmp_path / "weights"))
    assert "--steps must be above 0" in refused("--steps", "0")
    train_walk.main([*TINY, *run, "--steps", "1"])
    assert "give --resume to go on, or another --out" in refused("--steps", "2")
    assert "other flags: seed 0, now 9; give those" in refused("--steps", "2", "--resume", "--seed", "9")
    assert "sizes" in refused("--steps", "2", "--resume", "--layers", "2")


def test_a_run_that_is_asked_to_stop_ends_after_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = train_walk.Trainer.train_step

    def and_stop(self: train_walk.Trainer):
        training.STOP.set()
        return step(self)

    monkeypatch.setattr(training, "STOP", threading.Event())
    monkeypatch.setattr(train_walk.Trainer, "train_step", and_stop)
    train_walk.main([*TINY, "--steps", "3", "--out", str(tmp_path)])
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1


def test_a_cut_run_that_is_resumed_ends_like_a_whole_one(tmp_path: Path):
    whole, cut = (trained(train_walk, TINY, tmp_path / f"{len(stops)}", stops) for stops in ([4], [2, 4]))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, cut.model.state_dict()[name]), name
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, cut.average.state_dict()[name]), name


def test_the_log_has_scores_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_walk, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(train_walk, "CHECK_FRAMES", 5)
    train_walk.main([*TINY, "--steps", "1", "--out", str(tmp_path)])
    (line,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert line["frames_away"] == 4 and "revisited" in line


def test_outings_move_by_one_action_a_frame_and_often_come_back():
    rerotated = 0
    for seed in range(60):
        places = walk_batches.random_outing(np.random.default_rng(seed), 80)
        assert places.shape == (80, 2) and places[0].tolist() == [0, 0]
        assert {tuple(move) for move in np.diff(places, axis=0).tolist()} <= set(MOVES.values())
        far = np.abs(places).max(axis=1)
        rerotated += far.max() > VIEW_CELLS and far[far.argmax() :].min() <= 1
    assert rerotated > 30


def test_chosen_chunks_ascend_and_the_last_ones_see_old_cells_again():
    overlaps = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        places = walk_batches.random_outing(rng, 200)
        chosen = walk_batches.choose_chunks(rng, places, 9)
        assert len(chosen) == 9 and (np.diff(chosen) > 0).all() and chosen[-1] < 100
        assert chosen[-3:].tolist() == list(range(chosen[-1] - 2, chosen[-1] + 1))
        apart = np.abs(places[2 * chosen[:-3], None] - places[None, 2 * chosen[-3:]]).max(axis=-1)
        overlaps += apart.min() < VIEW_CELLS
    assert overlaps > 30
    assert walk_batches.choose_chunks(np.random.default_rng(0), np.zeros((6, 2), np.int64), 9).tolist() == [0, 1, 2]


def test_a_batch_is_decided_by_the_generator_and_shows_the_same_cell_alike():
    batch, again = (walk_batches.make_batch(np.random.default_rng(4), 2, 6, 60, 4.0) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(vars(batch).values(), vars(again).values(), strict=True))
    assert batch.clean_NSC.shape == (12, 128, 192) and batch.weight_NS.shape == (12, 128)
    assert set(batch.weight_NS.unique().tolist()) == {1.0, 4.0}
    assert not batch.sees_NN[:6, 6:].any() and not batch.sees_NN[6:, :6].any() and not batch.sees_NN.triu().any()
    assert batch.sees_NN[range(1, 6), range(5)].all()
    cells = {}
    for chunk in range(6):
        for token in range(128):
            place = tuple(batch.cells_NS2[chunk, token].tolist())
            assert torch.equal(cells.setdefault(place, batch.clean_NSC[chunk, token]), batch.clean_NSC[chunk, token])
    seen_NS = walk_batches.is_seen(batch)
    for chunk in range(6):
        shown = {tuple(cell) for cell in batch.cells_NS2[batch.sees_NN[chunk]].flatten(0, 1).tolist()}
        assert seen_NS[chunk].tolist() == [tuple(cell) in shown for cell in batch.cells_NS2[chunk].tolist()]


def test_training_attention_is_dense_attention_under_its_mask():
    batch = walk_batches.make_batch(np.random.default_rng(1), 2, 3, 40, 1.0)
    attend = walk_batches.SeenAttention(batch, 64)
    q, k, v = torch.randn(3, 12, 128, 2, 64)
    out = attend(0, *(x.reshape(-1, 2, 64) for x in (q, k, v))).view(12, 128, 2, 64)
    rope, tables = WorldRotary(64), []
    for cells in batch.cells_NS2:
        first, second = cells[0].tolist(), cells[TOKENS_PER_FRAME].tolist()
        position = position_of(*first, (second[0] - first[0], second[1] - first[1]))
        tables.append(rope.tables(position * TOKENS_PER_FRAME, 128))
    cos, sin = (torch.cat([table[i] for table in tables]).repeat(2, 1).unsqueeze(1) for i in (0, 1))
    sees = torch.eye(12, dtype=torch.bool)
    sees[6:, :6] = batch.sees_NN
    mask = sees.repeat_interleave(128, 0).repeat_interleave(128, 1)
    rotated = (rotate(x.flatten(0, 1), cos, sin).transpose(0, 1) for x in (q, k))
    expected = F.scaled_dot_product_attention(*rotated, v.flatten(0, 1).transpose(0, 1), attn_mask=mask)
    assert torch.allclose(out.flatten(0, 1), expected.transpose(0, 1), atol=1e-4)


def test_the_loss_of_a_network_that_knows_everything_is_zero():
    batch = walk_batches.make_batch(np.random.default_rng(1), 1, 4, 20, 1.0)

    class Knows(torch.nn.Module):
        config = Transformer(train_walk.TransformerConfig(width=64, num_heads=1, num_layers=1)).config

        def forward(self, latents, levels, attend):
            assert levels[:4].tolist() == [0.0] * 4 and levels[4:].min() > 0
            return torch.cat([batch.clean_NSC, batch.clean_NSC]).flatten(0, 1)

    loss, errors = walk_batches.batch_loss(Knows(), batch, torch.Generator().manual_seed(0))
    assert loss == 0 and set(errors.values()) <= {0.0}


def test_the_square_ends_where_it_began():
    places = read_walk(walk_check.square(41)).places(41)
    assert places[0].tolist() == places[-1].tolist() == [0, 0]
    assert np.abs(places).max() == 10
    assert cells_of(np.zeros((16, 8, 3), np.uint8)).shape == (2, 1, 192)
