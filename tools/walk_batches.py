"""The training of the walk model: random outings over maps, the chunks that a step takes of them, and the loss.

A step takes a few chunks of a long outing: some at its end, some that saw the same cells long before, and some from
anywhere. Every chunk is there twice: clean, as its commit pass stores it, and noisy, as it is denoised. A clean chunk
sees itself; a noisy one sees itself and the clean chunks that came before it. What is stored of a chunk depends on
nothing else, so an outing of any length costs no more than the chunks that are taken.

Axes: N chunks of S tokens, C latent channels, F frames, H heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from demo_batches import draw_levels, plain_attention, rotated
from pagedvid.models.walk.actions import MOVES
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.rotary import cells_in_view, world_angles
from pagedvid.models.walk.spec import FRAMES_PER_CHUNK, VIEW_CELLS, map_latents
from pagedvid.models.walk.world import landmarks

LONGEST_RUN = 24
"""Most frames in one direction."""
SMALLEST_LEVEL = 0.2
"""Smallest level in the loss weight 1 / level^2."""
HISTORY_NOISE = 0.1
"""Largest noise level of the clean chunks of half of the batches, so that imperfect chunks do not derail a walk."""
FORGETFUL_PART, MOST_FORGOTTEN = 0.5, 0.6
"""Fraction of the batches in which chunks do not see all earlier ones, and largest fraction that they miss."""
START = 10_000
"""Walks begin at most this many cells from a map's origin."""
LOUD = 0.9
"""Noise level from which on the logged errors count: below it, a cell's own latents tell what it is."""


@dataclass(frozen=True)
class Batch:
    """Chunks of one or several outings."""

    clean_NSC: Tensor
    cells_NS2: Tensor
    """World (row, column) of each token, int64."""
    weight_NS: Tensor
    """Of each token in the loss."""
    sees_NN: Tensor
    """Whether a noisy chunk (row) sees a clean chunk (column), bool."""


def random_moves(rng: np.random.Generator, num_moves: int, longest_run: int) -> list[tuple[int, int]]:
    """Moves in runs of one action each."""
    moves: list[tuple[int, int]] = []
    actions = tuple(MOVES.values())
    while len(moves) < num_moves:
        moves += [actions[rng.integers(len(actions))]] * int(rng.integers(1, longest_run + 1))
    return moves[:num_moves]


def random_outing(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Places of the frames of an outing, int64 [F, 2]: out for one half, and then back by the same way, home by
    another way, or on."""
    longest_run = int(rng.integers(4, LONGEST_RUN + 1))
    moves = random_moves(rng, num_frames // 2, longest_run)
    way = rng.random()
    if way < 0.4:
        moves += [(-down, -right) for down, right in reversed(moves)]
    elif way < 0.8:
        moves += _way_home(rng, *np.sum(moves, axis=0, dtype=np.int64).tolist())
    moves += random_moves(rng, num_frames, longest_run)
    return np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(moves[: num_frames - 1], axis=0)])


def _way_home(rng: np.random.Generator, row: int, column: int) -> list[tuple[int, int]]:
    """Moves from (row, column) to (0, 0)."""
    moves = []
    while (row, column) != (0, 0):
        down, right = -int(np.sign(row)), -int(np.sign(column))
        if down and rng.random() < 0.5:
            right = 0
        moves.append((down, right))
        row, column = row + down, column + right
    return moves


def choose_chunks(rng: np.random.Generator, places_F2: np.ndarray, num_chosen: int) -> np.ndarray:
    """Numbers of chunks of an outing, ascending: a third at the end of a part of it, up to a third that overlap with
    these, and pairs from anywhere before."""
    first_places = places_F2[::FRAMES_PER_CHUNK]
    if len(first_places) <= num_chosen:
        return np.arange(len(first_places))
    end = int(rng.integers(max(num_chosen, len(first_places) // 2), len(first_places) + 1))
    start = end - num_chosen // 3
    apart = np.abs(first_places[:start, None] - first_places[None, start:end]).max(axis=-1).min(axis=1)
    chosen = {*range(start, end), *rng.permutation(np.nonzero(apart < VIEW_CELLS)[0])[: num_chosen // 3].tolist()}
    while len(chosen) < num_chosen:
        first = int(rng.integers(start))
        chosen |= {first} if len(chosen) == num_chosen - 1 else {first, first + 1}
    return np.array(sorted(chosen))


def make_batch(
    rng: np.random.Generator, num_maps: int, chunks_per_map: int, longest_frames: int, landmark_weight: float
) -> Batch:
    """Outings of at most `longest_frames`, each over a map of its own. `landmark_weight`: of a cell with a landmark in
    the loss; others weigh 1."""
    clean, cells, weights = [], [], []
    sees_NN = torch.zeros(num_maps * chunks_per_map, num_maps * chunks_per_map, dtype=torch.bool)
    for number in range(num_maps):
        num_chunks = int(rng.integers(chunks_per_map, max(chunks_per_map, longest_frames // FRAMES_PER_CHUNK) + 1))
        places_F2 = random_outing(rng, num_chunks * FRAMES_PER_CHUNK) + rng.integers(-START, START, 2)
        map_seed = int(rng.integers(2**31))
        for chunk in choose_chunks(rng, places_F2, chunks_per_map):
            of_chunk = places_F2[chunk * FRAMES_PER_CHUNK : (chunk + 1) * FRAMES_PER_CHUNK]
            clean.append(torch.from_numpy(map_latents(map_seed, of_chunk)))
            cells.append(torch.cat([cells_in_view(*place) for place in of_chunk.tolist()]))
            weights.append(torch.cat([_weights(map_seed, *place, landmark_weight) for place in of_chunk.tolist()]))
        own = slice(number * chunks_per_map, (number + 1) * chunks_per_map)
        sees_NN[own, own] = _earlier(rng, chunks_per_map)
    return Batch(torch.stack(clean), torch.stack(cells), torch.stack(weights), sees_NN)


def _earlier(rng: np.random.Generator, num_chunks: int) -> Tensor:
    """Which earlier chunks each chunk sees, bool [N, N]: the one just before it, and all others or some of them."""
    earlier = np.tri(num_chunks, k=-1, dtype=bool)
    if rng.random() < FORGETFUL_PART:
        forgotten = rng.random(earlier.shape) < MOST_FORGOTTEN * rng.random()
        earlier &= ~forgotten | np.eye(num_chunks, k=-1, dtype=bool)
    return torch.from_numpy(earlier)


def _weights(map_seed: int, row: int, column: int, landmark_weight: float) -> Tensor:
    weight = torch.ones(VIEW_CELLS, VIEW_CELLS, dtype=torch.float32)
    for r, c in landmarks(map_seed, row, column, VIEW_CELLS, VIEW_CELLS):
        weight[r - row, c - column] = landmark_weight
    return weight.flatten()


class SeenAttention:
    """`Attend` for training over N clean chunks and then N noisy ones: `Batch.sees_NN`, and each chunk itself."""

    def __init__(self, batch: Batch, head_dim: int) -> None:
        self.num_chunks, self.chunk_tokens = batch.cells_NS2.shape[:2]
        self.seen = [row.nonzero().flatten() for row in batch.sees_NN]
        angles = world_angles(batch.cells_NS2.flatten(0, 1), head_dim).view(*batch.cells_NS2.shape[:2], -1)
        self.cos, self.sin = (table.float().repeat(2, 1, 1) for table in (angles.cos(), angles.sin()))

    @torch.compiler.disable  # which chunks are seen differs from step to step
    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        cos, sin, num_clean = self.cos.to(q_THD.dtype), self.sin.to(q_THD.dtype), self.num_chunks
        q, k, v = (x.view(2 * num_clean, self.chunk_tokens, *x.shape[1:]) for x in (q_THD, k_THD, v_THD))
        q, k, v = (x.transpose(1, 2).contiguous() for x in (rotated(q, cos, sin), rotated(k, cos, sin), v))
        outs = [plain_attention(q[:num_clean], k[:num_clean], v[:num_clean])]
        for number, seen in enumerate(self.seen, start=num_clean):
            chunks = torch.cat([seen.to(q.device), torch.tensor([number], device=q.device)])
            keys, values = (x[chunks].transpose(0, 1).flatten(1, 2) for x in (k, v))
            outs.append(plain_attention(q[number], keys, values)[None])
        return torch.cat(outs).transpose(1, 2).reshape(q_THD.shape)


def is_seen(batch: Batch) -> Tensor:
    """Whether a chunk's cell is in a chunk that it sees, bool [N, S]."""
    ids_NS = batch.cells_NS2[..., 0] * 2**32 + batch.cells_NS2[..., 1]
    seen = [torch.isin(ids, ids_NS[sees]) for ids, sees in zip(ids_NS, batch.sees_NN, strict=True)]
    return torch.stack(seen)


def batch_loss(model: Transformer, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """(loss to minimise, mean squared error of loud cells that history shows, "copied", and of others, "new")."""
    clean = batch.clean_NSC
    levels_N = draw_levels((len(clean), 1), generator).flatten()
    noise, history_noise = torch.randn(2, *clean.shape, generator=generator)
    t = levels_N[:, None, None].to(clean.device)
    noisy = (1 - t) * clean + t * noise.to(clean.device)
    strength = HISTORY_NOISE * torch.rand(len(clean), 1, 1, generator=generator)
    strength = strength * (torch.rand(1, generator=generator) < 0.5)
    history = clean + (strength * history_noise).to(clean.device)
    packed, levels = torch.cat([history, noisy]), torch.cat([torch.zeros_like(levels_N), levels_N]).to(clean.device)
    prediction = model(packed.flatten(0, 1), levels, SeenAttention(batch, model.config.head_dim))
    error_NS = (prediction.view(packed.shape)[len(clean) :].float() - clean).square().mean(dim=2)
    loss = ((batch.weight_NS * error_NS).mean(dim=1) / t.flatten().clamp(min=SMALLEST_LEVEL).square()).mean()
    seen_NS, is_loud_N1 = is_seen(batch), (levels_N > LOUD)[:, None].to(clean.device)
    parts = {"copied": seen_NS & is_loud_N1, "new": ~seen_NS & is_loud_N1}
    return loss, {name: round(error_NS.detach()[part].mean().item(), 5) for name, part in parts.items() if part.any()}
