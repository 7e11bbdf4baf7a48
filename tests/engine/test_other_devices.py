"""Whole videos of every model on another device than the CPU, without one: "meta" (tests/attention/without_kernels.py).

Only what goes out is looked at. Beyond the first denoise step of a chunk a model's forward brings nothing to the device
but the numbers of that step, such as noise levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.engine import rounds
from pagedvid.engine.engine import Engine
from pagedvid.engine.forward import finished_chunk, packed_forward
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.requests import ChunkOutput, RequestFailure, VideoRequest
from pagedvid.engine.schedule import Round
from pagedvid.models.build import resolve
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.models.demo.weights import load_demo
from pagedvid.models.magi1.pipeline import MagiModel
from pagedvid.models.magi1.weights import load_magi
from pagedvid.models.worldplay.network_8b import Network8B
from pagedvid.models.worldplay.network_wan5b import NetworkWan5B
from pagedvid.models.worldplay.pipeline_8b import WorldPlay8B
from pagedvid.models.worldplay.pipeline_wan5b import WorldPlayWan5B
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.without_kernels import META, Copies, leave_out_kernels, on_meta
from tests.models.magi1 import recordings as magi
from tests.models.wan.base import tiny
from tests.models.wan.causal.test_rollout import tiny_model as tiny_wan
from tests.models.wan.skyreels.test_rollout import tiny_model as tiny_skyreels
from tests.models.worldplay import recordings as worldplay
from tests.models.worldplay.rollout import GRIDS
from tests.models.worldplay.rollout import request as worldplay_request

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are left out, which a GPU would run")
PROMPT = "a large red circle moving left on a black background"
ATTENTION_BRINGS = {
    "attention/rotation.py Rotation.of": "the angles of a step's own tokens",
    "attention/batches.py Run.of": "which tokens belong to a range, for another view",
    "attention/projected_step.py ProjectedStep._once": "cameras of the frames that it reads",
}
"""In every step. Everything else is found again."""


@dataclass(frozen=True)
class Family:
    """A tiny model on the device, its requests, and what its forward brings there in every step, by function."""

    model: VideoModel
    requests: Sequence[VideoRequest]
    brings: dict[str, int]
    num_steps: int | None = None


def two(request: VideoRequest, num_frames: int) -> list[VideoRequest]:
    """Videos of different length."""
    return [replace(request, id="a", num_frames=num_frames), replace(request, id="b", num_frames=num_frames - 5)]


def demo() -> Family:
    levels = {"models/demo/pipeline.py DemoModel.forward": 1}
    return Family(load_demo(device="meta"), two(VideoRequest("", PROMPT, 1), 32), levels, num_steps=3)


def magi_1(name: str) -> Family:
    rollout = magi.ROLLOUTS[name]
    network = load_magi(rollout.config, magi.DATA / "weights_a.safetensors").network
    model = MagiModel(rollout.config, network.to(META))
    times_and_step_lengths = {"models/magi1/pipeline.py MagiModel._condition": 2 if rollout.sampling.distill else 1}
    return Family(model, two(rollout.request(), 9), times_and_step_lengths, rollout.num_steps)


def of_diffusers(make: Callable[..., Any], class_name: str, branches: Sequence[str], **changes: Any) -> Family:
    model = make(tiny.tiny_transformer(class_name, attention_head_dim=32, **changes))
    model.transformer.to(META)
    request = VideoRequest("", "", 1, inputs={"embeddings": tiny.embeddings(0, branches)})
    place = f"{type(model).__module__.removeprefix('pagedvid.').replace('.', '/')}.py {type(model).__name__}.predict"
    return Family(model, two(request, 12), {place: 1 + bool(changes)})  # timesteps, and the library's number for fps


def wan_causal() -> Family:
    return of_diffusers(tiny_wan, "WanTransformer3DModel", ("cond",))


def skyreels() -> Family:
    return of_diffusers(tiny_skyreels, "SkyReelsV2Transformer3DModel", ("cond", "uncond"), inject_sample_info=True)


def hy_worldplay(variant: str) -> Family:
    with META:
        network = Network8B(worldplay.CONFIG_8B) if variant == "hy8b" else NetworkWan5B(worldplay.CONFIG_WAN)
    points = worldplay.inputs(variant)["points_local"]
    model = (WorldPlay8B if variant == "hy8b" else WorldPlayWan5B)(network, GRIDS[variant], points)  # type: ignore[arg-type]
    requests = [worldplay_request(variant, name, num_frames=frames) for name, frames in (("a", 12), ("b", 8))]
    return Family(model, requests, {"models/worldplay/pipeline.py WorldPlayModel.forward": 2})  # timesteps and actions


@dataclass(frozen=True)
class Forward:
    """One of the engine's."""

    rounds: Sequence[Round]
    copies: Copies

    def reads(self) -> list[Any]:
        """What its ranges are and see."""
        return [
            (part.frames, part.commits, part.visible, part.sees) for round_ in self.rounds for part in round_.ranges
        ]

    def repeats(self, other: Forward) -> bool:
        """Whether it is the next denoise step of the same chunks."""
        return self.reads() == other.reads() and not any(part.commits for r in self.rounds for part in r.ranges)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[Forward]:
    """All forwards of a test; kernels are left out, and finished chunks are looked at on the CPU."""
    leave_out_kernels(monkeypatch)
    seen: list[Forward] = []

    def noted(model: Any, cache: Any, jobs: Any) -> Any:
        seen.append(Forward([job.round for job in jobs], Copies()))
        with seen[-1].copies.noted():
            return packed_forward(model, cache, jobs)

    def on_cpu(model: Any, job: Any, chunk: int, now: float) -> ChunkOutput:
        latents = job.latents.chunks[chunk]
        assert latents.is_meta
        job.latents.chunks[chunk] = torch.zeros(latents.shape, dtype=latents.dtype)
        try:
            return finished_chunk(model, job, chunk, now)
        finally:
            job.latents.chunks[chunk] = latents

    monkeypatch.setattr(rounds, "packed_forward", noted)
    monkeypatch.setattr(rounds, "finished_chunk", on_cpu)
    return seen


def run(family: Family, cache: PagedKVCache) -> None:
    """Every video to its end."""
    window = Window(1, 1, positions=family.model.positions)
    engine = Engine(family.model, cache, window, max_batch_tokens=10_000, num_denoise_steps=family.num_steps)
    for request in family.requests:
        engine.submit(request)
    num_frames = dict.fromkeys((request.id for request in family.requests), 0)
    for output in engine.run():
        if isinstance(output, RequestFailure):
            raise output.error
        num_frames[output.request_id] += len(output.frames)
    assert num_frames == {request.id: request.num_frames for request in family.requests}


def check(forwards: Sequence[Forward], brings: dict[str, int]) -> None:
    """Later denoise steps bring what they must, and there are some that read history."""
    later = [forward for before, forward in pairwise(forwards) if forward.repeats(before)]
    assert any(part.frames[0] > 0 for forward in later for round_ in forward.rounds for part in round_.ranges)
    for forward in later:
        places = {place.split(".<locals>")[0]: count for place, count in forward.copies.by_place.items()}
        assert {place: count for place, count in places.items() if place not in ATTENTION_BRINGS} == brings


@pytest.mark.parametrize("codec", ["auto", "int2"])
def test_demo(codec: str, forwards: list[Forward]) -> None:
    family, settings = demo(), resolve(Config(cache=CacheConfig(codec=codec)))
    run(family, on_meta(PagedKVCache(settings.cache, "4MiB", tables=settings.tables)))
    check(forwards, family.brings)


def int2_cache(model: VideoModel, correction: str) -> PagedKVCache:
    geometry = model.geometry
    spec = CacheSpec(
        geometry.num_layers,
        geometry.num_kv_heads,
        geometry.head_dim,
        geometry.num_query_heads,
        codecs=StreamCodecs("int2"),
        correction=correction,
    )
    return on_meta(PagedKVCache(spec, "4MiB"))


@pytest.mark.parametrize("name", ["w4_cfg3", "w4_distill", "w4_prefix"])
def test_magi(name: str, forwards: list[Forward]) -> None:
    family = magi_1(name)
    run(family, int2_cache(family.model, "measured"))
    check(forwards, family.brings)


@pytest.mark.parametrize("make", [wan_causal, skyreels])
def test_models_of_diffusers(make: Callable[[], Family], forwards: list[Forward]) -> None:
    family = make()
    run(family, int2_cache(family.model, "measured"))
    check(forwards, family.brings)


@pytest.mark.parametrize(("variant", "correction"), [("hy8b", "measured"), ("wan5b", "off")])
def test_hy_worldplay(variant: str, correction: str, forwards: list[Forward]) -> None:
    """Two views of the same history."""
    family = hy_worldplay(variant)
    run(family, int2_cache(family.model, correction))
    check(forwards, family.brings)


def test_a_forward_that_looks_at_the_device_fails(forwards: list[Forward], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above rest on, and that copies of numbers are seen."""
    family = demo()
    forward = DemoModel.forward
    monkeypatch.setattr(DemoModel, "forward", lambda self, x, *given: forward(self, x + torch.zeros(1), *given))
    with pytest.raises(RuntimeError, match="device"):
        run(family, int2_cache(family.model, "off"))
    monkeypatch.setattr(DemoModel, "forward", lambda self, x, *given: forward(self, x.new_tensor(1.0) * x, *given))
    forwards.clear()
    run(family, int2_cache(family.model, "off"))
    with pytest.raises(AssertionError):
        check(forwards, family.brings)
