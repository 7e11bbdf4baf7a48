"""The families of the tensor level: videos of the demo model, and synthetic ones, each with all schemes for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from corrections import factored, granularities, samplings
from families import draw_family
from lab import note
from pagedvid.calibration.fit import calibrate
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.file import Calibration, load_calibration
from pagedvid.codecs.page import PageFormat, block_frames
from pagedvid.codecs.registry import read_codec
from pagedvid.models.demo.model import DemoModel
from pagedvid.models.registry import model_tables
from quality_scores import draw_tasks
from schemes import Scheme, paged, paged_scheme, peer_scheme, peers
from tensor_level import Family, Videos, measure_family, measure_scheme
from tensors import capture
from video_level import CODECS, FACTORS, KLT_CODECS

DEMO = "demo"
CACHED_CHUNKS = (2, 4)
"""Of the demo model's videos in turn."""
CALIBRATION_VIDEOS = 8
"""Of a synthetic family; none of them is measured."""
SAMPLED_QUERIES = (16, 32, 128)


@dataclass(frozen=True)
class Sampling:
    """Which videos are measured, and with what."""

    num_videos: int
    seed: int
    storages: Sequence[str] | None = None
    """Rows of the tables; None: all."""
    weights: Path | None = None
    """Folder of the demo model; None: the shipped one."""
    studied: Sequence[str] = ()
    """Codecs whose corrections are compared in every form."""

    def measure(self, name: str) -> dict[str, Any]:
        """{"schemes": what `measure_family` says, "studies": by storage}."""
        family = demo_family(self) if name == DEMO else synthetic_family(name, self)
        studies = {storage: study_corrections(family, storage) for storage in self.studied}
        return {"schemes": measure_family(family), "studies": studies}


def demo_family(sampling: Sampling) -> Family:
    """The prompts of the video level. Klt tables are those that lie beside the weights, if any."""
    model, videos = DemoModel.load(sampling.weights), []
    for number, task in enumerate(draw_tasks(sampling.num_videos, sampling.seed)):
        num_chunks = CACHED_CHUNKS[number % len(CACHED_CHUNKS)]
        videos.append(capture(model, task.request.prompt, task.request.seed, num_chunks))
    tables = model_tables("demo", sampling.weights)
    return _family(DEMO, videos, None if tables is None else load_calibration(tables), sampling.storages)


def synthetic_family(name: str, sampling: Sampling) -> Family:
    """Klt tables are calibrated on further videos of the family."""
    num_videos = sampling.num_videos
    videos = [[draw_family(name, sampling.seed + i)] for i in range(num_videos + CALIBRATION_VIDEOS)]
    return _family(name, videos[:num_videos], calibrate_on(name, videos[num_videos:]), sampling.storages)


def calibrate_on(name: str, videos: Videos) -> Calibration:
    """Tables of all layers."""
    layers = [list(samples) for samples in zip(*videos, strict=True)]
    layout = _layout(videos)
    tables = [calibrate(layers, kind, layout) for kind in ("keys", "values")]
    return Calibration.of(name, *tables, calibrated_on=f"{len(videos)} videos")


def study_corrections(family: Family, storage: str) -> dict[str, Any]:
    """One codec under every form, granularity, strength and sampling of the correction."""
    codecs = paged(storage, family.videos[0][0].k_CHTD.shape[-1])
    note(f"{family.name}: corrections of {storage}")
    scheme = _paged_scheme(storage, family.videos, None)
    page = PageFormat(family.videos[0][0].k_CHTD.shape[-1], codecs.rows)
    corrections = granularities(read_codec(storage).page_tokens(page))
    corrections |= {f"b x {factor:g}": factored(factor) for factor in FACTORS}
    corrections |= samplings(SAMPLED_QUERIES)
    with torch.no_grad():
        return measure_scheme(scheme, family.videos, corrections)


def _family(name: str, videos: Videos, calibration: Calibration | None, storages: Sequence[str] | None) -> Family:
    num_chunks, _, chunk_tokens, head_dim = videos[0][0].k_CHTD.shape
    schemes = [peer_scheme(peer) for peer in peers(num_chunks * chunk_tokens, head_dim)]
    codecs = CODECS if calibration is None else CODECS + KLT_CODECS
    schemes += [_paged_scheme(codec, videos, calibration) for codec in codecs]
    return Family(name, videos, [scheme for scheme in schemes if storages is None or scheme.name in storages])


def _paged_scheme(codec: str, videos: Videos, calibration: Calibration | None) -> Scheme:
    sample, layout = videos[0][0], _layout(videos)
    head_dim, num_heads = sample.k_CHTD.shape[-1], sample.k_CHTD.shape[1]
    codecs = paged(codec, head_dim)
    page = PageFormat(head_dim, codecs.rows, layout.tokens_per_frame, layout.num_frames)
    return paged_scheme(codecs, page, CodecBook(page, num_heads, calibration))


def _layout(videos: Videos) -> BlockLayout:
    sample = videos[0][0]
    return BlockLayout(sample.tokens_per_frame, block_frames(sample.k_CHTD.shape[2] // sample.tokens_per_frame))
