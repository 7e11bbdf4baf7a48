"""Videos whose scene changes inside a chunk, so that the pages of the chunk have different step sizes.

In synthetic videos a scene has a look: the size and offset of each channel of its keys, besides those of the model.
With two cached chunks of three frames, the second of which changes:

    still, moving      one look; tokens persist from frame to frame to 99.5 %, 90 %
    cut                another look from the middle of the second chunk on
    bright cut         the same, and the second look has twice the contrast
    fast pan           tokens persist to 50 %; one look becomes another from frame to frame
    bright frame       the middle frame of the second chunk has twice the contrast

Two videos of the demo model with different prompts give a cut in real keys: the second begins after three of the eight
frames of a chunk.

Axes as in samples.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.quality import draw_tasks
from lib.samples import SCORE_DEVIATION, Sample, Traits, capture, draw_video
from pagedvid.models.demo.weights import load_demo

NUM_CHUNKS, NUM_FRAMES, FRAME_TOKENS, HEAD_DIM = 2, 3, 390, 64
CHUNK_TOKENS = NUM_FRAMES * FRAME_TOKENS
BRIGHT_CONTRAST = 2.0
LOOK_SIZE, LOOK_OFFSET = 0.5, 1.0
"""Standard deviations of a look: of the logarithm of a channel's size, and of its offset."""
DEMO_CUT_FRAMES = 3


def _steady(token_C: Tensor) -> Tensor:
    return torch.zeros_like(token_C)


@dataclass(frozen=True)
class Scene:
    """How a synthetic video changes. Functions of the tokens' numbers in the video, the current chunk's included."""

    persistence: float
    second_look: Callable[[Tensor], Tensor] = _steady
    """How far a token has the second look, 0 to 1."""
    is_bright: Callable[[Tensor], Tensor] = _steady
    """Whether it has the larger contrast, 0 or 1."""


def _is_after_cut(token_C: Tensor) -> Tensor:
    return (token_C >= 1.5 * CHUNK_TOKENS).float()


SCENES = {
    "still": Scene(0.995),
    "moving": Scene(0.9),
    "cut": Scene(0.9, second_look=_is_after_cut),
    "bright cut": Scene(0.9, second_look=_is_after_cut, is_bright=_is_after_cut),
    "fast pan": Scene(0.5, second_look=lambda token: (token // FRAME_TOKENS) / ((NUM_CHUNKS + 1) * NUM_FRAMES - 1)),
    "bright frame": Scene(0.9, is_bright=lambda token: (token // FRAME_TOKENS == NUM_FRAMES + 1).float()),
}


def draw_scene(name: str, seed: int) -> Sample:
    """A synthetic video. Seeds differ in tokens and looks; the model is the same."""
    scene = SCENES[name]
    traits = Traits(rank=32, persistence=scene.persistence)
    video = draw_video(traits, "scenes", seed, HEAD_DIM, NUM_CHUNKS, NUM_FRAMES, FRAME_TOKENS)
    random = torch.Generator().manual_seed(seed)
    num_heads = video.k_CHTD.shape[1]
    sizes_LHD, offsets_LHD = torch.randn(2, 2, num_heads, HEAD_DIM, generator=random)
    token = torch.arange((NUM_CHUNKS + 1) * CHUNK_TOKENS).float()
    share = scene.second_look(token).view(-1, 1, CHUNK_TOKENS, 1)
    contrast = BRIGHT_CONTRAST ** scene.is_bright(token).view(-1, 1, CHUNK_TOKENS, 1)

    def of_look(x_LHD: Tensor) -> Tensor:
        first, second = x_LHD.unsqueeze(-2)
        return torch.lerp(first, second, share)

    k = torch.cat([video.k_CHTD, video.current_k_LHTD])
    k = contrast * (k * (LOOK_SIZE * of_look(sizes_LHD)).exp() + LOOK_OFFSET * of_look(offsets_LHD) / HEAD_DIM**0.5)
    return _with_keys(video, k)


def _with_keys(video: Sample, k_CHTD: Tensor) -> Sample:
    """The video with other keys; queries are scaled to give scores of the wanted standard deviation again."""
    changed = replace(video, k_CHTD=k_CHTD[:-1], current_k_LHTD=k_CHTD[-1:])
    scores = changed.rotated(video.q_LHTD[0], -1) @ changed.rotated(k_CHTD[0], 0).mT * HEAD_DIM**-0.5
    factor = SCORE_DEVIATION / scores.std(-1).mean()
    return replace(changed, q_LHTD=factor * video.q_LHTD, commit_q_CHTD=factor * video.commit_q_CHTD)


def demo_scenes(num_videos: int, seed: int, *, is_cut: bool) -> list[list[Sample]]:
    """For each video all layers of the demo model; `is_cut`: spliced from two videos of different prompts."""
    model = load_demo()
    requests = [task.request for task in draw_tasks(2 * num_videos, seed)]
    videos = [capture(model, request.prompt, request.seed, NUM_CHUNKS) for request in requests]
    if not is_cut:
        return videos[:num_videos]
    pairs = zip(videos[:num_videos], videos[num_videos:], strict=True)
    return [[_spliced(a, b) for a, b in zip(before, after, strict=True)] for before, after in pairs]


def _spliced(before: Sample, after: Sample) -> Sample:
    """The second video from `DEMO_CUT_FRAMES` frames into the last cached chunk on, and in the current chunk."""
    size = before.k_CHTD.shape[2]
    is_after = torch.arange(NUM_CHUNKS * size).view(NUM_CHUNKS, 1, size, 1)
    is_after = is_after >= (NUM_CHUNKS - 1) * size + DEMO_CUT_FRAMES * before.tokens_per_frame

    def splice(name: str) -> Tensor:
        return torch.where(is_after, getattr(after, name), getattr(before, name))

    names: Sequence[str] = ("k_CHTD", "v_CHTD", "commit_q_CHTD")
    return replace(after, **{name: splice(name) for name in names})
