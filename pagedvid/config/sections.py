"""Every setting of pagedvid: frozen dataclasses, one per section of the configuration file.

A field's rule (rules.py) says which values are allowed and turns what was written into what the program uses. Every
section applies its rules when it is built (section.py), so no wrong value reaches the engine. file.py fills these
classes from YAML, flags and `--set`. The section of the service is in serving.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pagedvid.budgets import LOOK_BACKS
from pagedvid.codecs.assignment import CodecPair
from pagedvid.codecs.registry import LADDERS
from pagedvid.config.loras import Lora
from pagedvid.config.rules import (
    codecs,
    flag,
    layers,
    loras,
    nothing,
    number,
    one_of,
    setting,
    size,
    text,
    whole,
    words_or,
)
from pagedvid.config.section import Section
from pagedvid.config.serving import ServeConfig
from pagedvid.correction import MODES
from pagedvid.engine.scheduler import LIVE_ADMISSION, POLICIES
from pagedvid.units import GIB

DTYPES = ("float32", "bfloat16")
DEVICE = text("cpu, cuda or cuda:N", r"cpu|cuda(:[0-9]{1,3})?")
"""The rule for a device, in settings and flags."""
MAX_FRAMES = 100_000
"""Most frames of one video, which are hours. Planning takes time for each frame."""
MAX_WINDOW_CHUNKS = MAX_FRAMES
"""Most sinks, and most recent chunks, of one stream: as many as a video can have."""
MAX_SEED = 2**63 - 1
"""The largest value of an int64 tensor."""


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which model runs, where and in which number format."""

    name_in_file = "model"

    name: str = setting("demo", text("the name of a model"))
    """Name of the model; `demo` is the small one that ships with pagedvid."""
    weights: str | None = setting(None, nothing() | text("a path"))
    """File or folder of the model's weights (a folder for the demo model); null = those that ship with pagedvid."""
    loras: tuple[Lora, ...] = setting((), loras())
    """Files of LoRAs whose changes are added to the weights when they are loaded, each PATH or PATH:SCALE."""
    text_encoder: str | None = setting(None, nothing() | text("a path"))
    """Folder of the text encoder, which makes embeddings of prompts; null = requests name a file of embeddings."""
    vae: str | None = setting(None, nothing() | text("a path"))
    """Folder of the VAE, which decodes latents into frames; null = latents are written (the demo model has no VAE)."""
    device: str = setting("cpu", DEVICE)
    """Device that holds the model and the cache."""
    dtype: str = setting("float32", one_of(*DTYPES))
    """Number format that the model computes in."""
    weights_dtype: str | None = setting(None, nothing() | one_of("fp8"))
    """Number format that the linear layers of a transformer's blocks keep their weights in: fp8 = e4m3 with a scale for
    each row; null = `dtype`."""
    offload: bool = setting(False, flag())
    """Whether the transformer's blocks stay in host memory; each comes to the device while the one before it runs."""
    compile: bool = setting(False, flag())
    """Whether torch.compile compiles the transformer's blocks, in the first steps of a run. It needs a C++ compiler, on
    a GPU Triton and a C compiler."""
    cuda_graphs: bool = setting(False, flag())
    """Whether the operations between two layers of attention are recorded as CUDA graphs once they repeat, which saves
    time of the host."""
    text_encoder_device: str | None = setting(None, nothing() | DEVICE)
    """Device of the text encoder; null = `device`."""
    vae_device: str | None = setting(None, nothing() | DEVICE)
    """Device of the VAE; null = `device`."""
    height: int | None = setting(None, nothing() | whole(16, 2**14))
    """Pixels of a frame from top to bottom, for models that take any size; null = the size it was published with."""
    width: int | None = setting(None, nothing() | whole(16, 2**14))
    """Pixels of a frame from left to right; null = the size it was published with."""
    ar_step: int = setting(0, whole(0, 1000))
    """Denoise steps after which SkyReels-V2 begins the next chunk while those before it go on; 0 = one chunk after the
    other."""
    guidance_scale: float | None = setting(None, nothing() | number(0.01, 100))
    """How far SkyReels-V2 follows the prompt; 1 = no guidance, and one history; null = 6, which its authors take for
    text. For images they take 5."""
    shift: float | None = setting(None, nothing() | number(0.01, 100))
    """How far SkyReels-V2's noise levels crowd towards noise; null = 8, which its authors take for text. For images
    they take 5."""
    addnoise_condition: int | None = setting(None, nothing() | whole(0, 1000))
    """Thousandths of noise on the frames that SkyReels-V2 goes on from; null = 20, as its authors recommend."""
    special_tokens: str | tuple[str, ...] = setting("auto", words_or("auto"))
    """Special tokens in front of MAGI-1's prompts, from the file `special_tokens.npz` next to the weights; auto = those
    of its published scripts, duration and hq, if the file is there, and otherwise none."""
    null_special_tokens: bool = setting(False, flag())
    """Whether MAGI-1's null text begins with the special tokens of a negative prompt, from the same file."""
    ema: bool = setting(True, flag())
    """Whether to take the averaged weights of a checkpoint that has averaged and last ones."""

    @property
    def device_of_text_encoder(self) -> str:
        """Where prompts are encoded."""
        return self.text_encoder_device or self.device

    @property
    def device_of_vae(self) -> str:
        """Where latents are decoded."""
        return self.vae_device or self.device


@dataclass(frozen=True)
class CacheConfig(Section):
    """How much of the past is kept, in how many bits, in how much memory."""

    name_in_file = "cache"

    memory: int = setting(2 * GIB, size())
    """Bytes of the page pool that all streams share, for keys and values together."""
    codec: str = setting("auto", one_of("auto", *LADDERS) | codecs())
    """Codec of the history, or KEYS/VALUES; klt or int = codecs of that family chosen head by head, to spend `bits`;
    auto = klt or int if the model has a profile, or else klt1.5/klt3 if it has tables, or else int2."""
    bits: float | None = setting(None, nothing() | number(0.05, 16))
    """Bits per value of the history that `codec: klt` or `int` spends; null = 1.25 for klt, 2.25 for int."""
    look_back: str = setting("auto", one_of("auto", *LOOK_BACKS))
    """Whether every head keeps the whole window (uniform), or `bits` also decide how far each looks back (per_head);
    auto = per_head if the model's profile was measured with this window."""
    sink_codec: str | None = setting(None, nothing() | codecs())
    """Codec of the sink chunks; null = the same as `codec`."""
    newest_codec: str | None = setting(None, nothing() | codecs())
    """Codec of the newest chunk until the next one is committed; null = the same as `codec`."""
    layer_codecs: tuple[tuple[int, int, CodecPair], ...] = setting((), layers())
    """Layers whose codec differs from `codec`."""
    page_rows: int | str = setting("auto", one_of("auto") | whole(5, 4096))
    """Bytes of a page in units of head_dim; auto = what suits `codec`."""
    tables: str | None = setting(None, nothing() | text("a path"))
    """File with the tables of klt codecs (`pagedvid calibrate`); null = the one next to the weights, if any."""
    sink_chunks: int | str = setting("auto", one_of("auto") | whole(0, MAX_WINDOW_CHUNKS))
    """First chunks of a stream that are never evicted; auto = what suits the model, mostly 1."""
    recent_chunks: int | str = setting("auto", one_of("auto") | whole(1, MAX_WINDOW_CHUNKS))
    """Newest committed chunks that are kept; sinks and the current chunk do not count. auto = what suits the model,
    mostly 4."""
    correction: str = setting("auto", one_of("auto", *MODES))
    """Correction of the attention mass that quantized keys gain: off, by the closed formula, by the change of variance,
    or measured at commit; auto = measured for codecs with step sizes, off for klt, which hardly changes the mass."""
    host_memory: int | None = setting(None, nothing() | size())
    """Bytes of host memory for the pages of idle videos that are swapped out when others wait for pages; null = none,
    they stay in the pool."""
    debug_checks: bool = setting(False, flag())
    """Whether to recompute all bookkeeping after every step and to stop at the first contradiction (slow)."""


@dataclass(frozen=True)
class AttentionConfig(Section):
    """How attention over pages is computed."""

    name_in_file = "attention"

    backend: str = setting("auto", text("auto or the name of a backend"))
    """Attention backend; auto takes the first that can run here."""
    scratch: int | str = setting("auto", one_of("auto") | size())
    """Bytes of the reused buffer that pages are decoded into; one head of one chunk always fits. auto = 4 MiB on a CPU,
    512 MiB on a GPU."""
    history_dtype: str = setting("auto", one_of("auto", "bf16", "fp8"))
    """What pages are decoded to, besides the current chunk: the model's own dtype (bf16), or 8-bit floats (fp8); auto =
    fp8 where that is faster and costs no quality."""
    correction_unit: str = setting("chunk", one_of("chunk", "page"))
    """What is corrected together: a whole chunk by its mean step sizes, or runs of pages with about the same ones."""


@dataclass(frozen=True)
class EngineConfig(Section):
    """How the steps of many streams are batched."""

    name_in_file = "engine"

    max_batch_tokens: int = setting(2048, whole(1, 2**31 - 1))
    """Most tokens of one batched forward; a single chunk always fits."""
    policy: str = setting("fcfs", one_of(*POLICIES))
    """Which streams run first: fcfs finishes the oldest first, round_robin advances all of them evenly, priority runs
    those of the highest priority, deadline those whose viewers will stall first."""
    live_admission: str = setting("measured", one_of(*LIVE_ADMISSION))
    """Whether a live video is refused when, as measured, it would make others stall (measured), or never (all)."""
    concurrent: int | str = setting("auto", one_of("auto") | whole(1, 10**6))
    """Most streams that run at once; auto = as many as the memory holds."""
    denoise_steps: int | None = setting(None, nothing() | whole(1, 1000))
    """Denoise steps per chunk; the commit pass comes on top. null = the model's own number."""
    reproducible: bool = setting(False, flag())
    """Whether a video's frames are the same to the last bit whatever else runs. Every video then has its own forwards
    (slower with many streams). Holds on one machine with one number of threads."""


@dataclass(frozen=True)
class GenerateConfig(Section):
    """What the videos are like."""

    name_in_file = "generate"

    num_frames: int = setting(48, whole(1, MAX_FRAMES))
    """Frames of a video whose prompt does not give a number; latent frames where a VAE makes several of each."""
    seed: int = setting(0, whole(0, MAX_SEED))
    """Seed of the first prompt; the prompt with index i gets seed + i unless it names its own."""
    scale: int | None = setting(None, nothing() | whole(1, 64))
    """Enlargement of the pixels in the files (nearest neighbour); null = the model's (demo: 8, others: 1)."""
    frames_per_second: float | None = setting(None, nothing() | number(0.0001, 240))
    """Playing speed of the videos; null = the model's."""
    threads: int | str = setting("auto", one_of("auto") | whole(1, 512))
    """Threads of tensor operations on the CPU; auto = one or all, whichever makes the first steps faster (all where
    `engine.reproducible` is set, an equal share of all where several devices are)."""
    devices: int = setting(1, whole(1, 512))
    """Devices that work on every video together, each with its share of the KV heads in `cache.memory` of its own. On a
    CPU they are processes."""


@dataclass(frozen=True)
class Config:
    """All settings."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """Which model runs, where and in which number format."""
    cache: CacheConfig = dataclasses.field(default_factory=CacheConfig)
    """How much of the past is kept, in how many bits, in how much memory."""
    attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    """How attention over pages is computed."""
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    """How the steps of many streams are batched."""
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    """What the videos are like."""
    serve: ServeConfig = dataclasses.field(default_factory=ServeConfig)
    """What clients of the service may do, and how long it waits for them."""


SECTIONS: dict[str, type[Section]] = {
    section.name_in_file: section
    for section in (ModelConfig, CacheConfig, AttentionConfig, EngineConfig, GenerateConfig, ServeConfig)
}

_NOT_IN_FRAMES = {
    "model.device",
    "model.offload",
    "model.compile",
    "model.cuda_graphs",
    "model.text_encoder_device",
    "model.vae_device",
    "cache.memory",
    "cache.host_memory",
    "cache.debug_checks",
    "attention.backend",
    "attention.scratch",
    "engine.max_batch_tokens",
    "engine.policy",
    "engine.live_admission",
    "engine.concurrent",
    "generate.num_frames",  # every request carries its own frames and seed
    "generate.seed",
    "generate.threads",
    "generate.devices",
    *(f"serve.{key}" for key in ServeConfig.field_names()),
}
_IN_LAST_BITS = {
    *("model.device", "model.compile", "model.cuda_graphs", "model.text_encoder_device", "model.vae_device"),
    *("attention.backend", "attention.scratch", "generate.threads", "generate.devices"),
}
"""Those of `_NOT_IN_FRAMES` that change the rounding of a video that runs alone."""


def frame_settings(config: Config) -> dict[str, object]:
    """The settings that decide a video's frames, by "section.key".

    All others change the frames by rounding at most, and not at all when `engine.reproducible` is set.
    """
    left_out = _NOT_IN_FRAMES - _IN_LAST_BITS if config.engine.reproducible else _NOT_IN_FRAMES
    return {
        f"{name}.{key}": getattr(config, name).written_field(key)
        for name, section in SECTIONS.items()
        for key in section.field_names()
        if f"{name}.{key}" not in left_out
    }
