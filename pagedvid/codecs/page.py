"""Codec names, and how many tokens a page holds in each: the integers behind quant/, without a tensor.

A page is a fixed number of bytes, `rows` rows of D bytes (D = head_dim), and holds tokens of the keys, or of the
values, of one KV head of one layer. Pages of every codec have the same size, so chunks of different precision share one
pool.

    fp32 bf16                 values as they are
    int2 int4 int8            a step and a zero per channel and page (fp16): 4 rows, the other rows hold codes
      -pair                     the two channels of a rotary pair share their step
      -s8                       steps in 8 bits (a power of 2^(1/6))
      -post                     keys are stored after rotary embedding
    token2-g64 token4-g32     a step and a zero per token and group of channels; keys after rotary embedding
    hadamard2-g64             the same on channels rotated by a Hadamard matrix
    klt2 klt1.5               transform coding with so many bits per value, all told; needs calibrated tables
    sim                       fp32 pages that stand for a codec under study: counts as quantized, see codecs/book.py

    rows 36:  int2 128 tokens, int4 64, int8 32, bf16 18, fp32 9        klt2 with rows 32: 128
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from pagedvid.errors import ConfigError
from pagedvid.shown import shown

DEFAULT_PAGE_ROWS = 36
KLT_PAGE_TOKENS = 128
"""Tokens of a page whose rows are chosen for a klt codec."""
MAX_BLOCK_FRAMES = 8
"""Most frames that klt transforms together: beyond that, neighbours have little left in common."""
RAW_BITS = {"fp32": 32, "bf16": 16, "sim": 32}
_CHANNEL = re.compile(r"int(?P<bits>[248])(?P<pair>-pair)?(?P<s8>-s8)?(?P<post>-post)?")
_TOKEN = re.compile(r"(?P<family>token|hadamard)(?P<bits>[248])-g(?P<group>16|32|64|128)")
_KLT = re.compile(r"klt(?P<bits>[0-9](\.[0-9]{1,6})?)")
CODEC_PATTERN = (
    "fp32, bf16, int8, int4, int2 (with -pair, -s8, -post in this order), token2-g64, hadamard2-g64 (2, 4 or 8 bits, "
    "groups of 16 to 128), klt2 (0.5 to 8 bits, such as klt1.5)"
)


@dataclass(frozen=True)
class CodecName:
    """A codec name, taken apart."""

    family: str
    """"raw", "channel", "token", "hadamard" or "klt"."""
    bits: float
    """Per value; of codes alone, except for klt, where scales are in it."""
    group: int = 0
    """Channels that share a token's step (token and hadamard)."""
    pair_steps: bool = False
    short_steps: bool = False
    """Steps of 8 bits."""
    stores_rotated: bool = False
    """Whether keys are stored after rotary embedding."""

    @property
    def metadata_rows(self) -> int:
        """Rows of steps and zeros in a page of channel codes."""
        step_half_rows = (1 if self.short_steps else 2) * (1 if self.pair_steps else 2)
        return 2 + -(-step_half_rows // 2)


@lru_cache(maxsize=256)
def read_codec(name: str) -> CodecName:
    """The parts of a codec name. Raises ConfigError."""
    if name in RAW_BITS:
        return CodecName("raw", RAW_BITS[name])
    if match := _CHANNEL.fullmatch(name):
        pair, short, post = (match[option] is not None for option in ("pair", "s8", "post"))
        return CodecName("channel", int(match["bits"]), pair_steps=pair, short_steps=short, stores_rotated=post)
    if match := _TOKEN.fullmatch(name):
        return CodecName(match["family"], int(match["bits"]), int(match["group"]), stores_rotated=True)
    if (match := _KLT.fullmatch(name)) and 0.5 <= float(match["bits"]) <= 8:
        return CodecName("klt", float(match["bits"]))
    raise ConfigError(f"unknown codec {shown(name)}; allowed are {CODEC_PATTERN}")


def is_quantized(name: str) -> bool:
    """Whether the stored values differ from the given ones by more than a float's rounding, and so are corrected."""
    return name not in ("fp32", "bf16")


def has_steps(name: str) -> bool:
    """Whether values are rounded to uniform steps, of which the correction's formula speaks ("sim" may have them)."""
    return name == "sim" or read_codec(name).family in ("channel", "token", "hadamard")


@dataclass(frozen=True)
class PageFormat:
    """The pages of one pool."""

    head_dim: int
    rows: int = DEFAULT_PAGE_ROWS
    tokens_per_frame: int = 1
    """Of the model; klt transforms the same place of consecutive frames together."""
    frames_per_block: int = 1
    """How many frames klt transforms together."""

    @property
    def num_bytes(self) -> int:
        """Bytes of one page."""
        return self.rows * self.head_dim

    def page_tokens(self, codec: str) -> int:
        """Most tokens that one page holds. Raises ConfigError when the codec does not fit this page or head_dim."""
        name = read_codec(codec)
        if name.family == "raw":
            tokens = int(self.rows * 8 // name.bits)
        elif name.family == "channel":
            tokens = int((self.rows - name.metadata_rows) * 8 // name.bits)
        elif name.family == "klt":
            tokens = self.page_blocks(codec) * self.frames_per_block
        else:
            if self.head_dim % name.group:
                raise ConfigError(f"{codec} needs a head_dim that is a multiple of {name.group}; it is {self.head_dim}")
            tokens = self.num_bytes // self.token_bytes(codec)
        if tokens < 1:
            raise ConfigError(f"a page of {self.rows} rows holds no token of {codec}; raise page_rows")
        return tokens

    def token_bytes(self, codec: str) -> int:
        """Codes, steps and zeros of one token in a token or hadamard page."""
        name = read_codec(codec)
        return int(self.head_dim * name.bits) // 8 + 4 * (self.head_dim // name.group)

    def page_blocks(self, codec: str) -> int:
        """Blocks of `frames_per_block` tokens in a klt page: so many that no value has more bits than the name says."""
        return math.ceil(8 * self.rows / (read_codec(codec).bits * self.frames_per_block) - 1e-9)

    def num_pages(self, num_tokens: int, codec: str) -> int:
        """Pages of one (layer, KV head) for `num_tokens` tokens; the last may be partly filled."""
        if read_codec(codec).family == "klt":
            self.page_tokens(codec)  # raises when a page holds none
            span = self.tokens_per_frame * self.frames_per_block
            return -(-self.tokens_per_frame * -(-num_tokens // span) // self.page_blocks(codec))
        return -(-num_tokens // self.page_tokens(codec))

    def padded_tokens(self, num_tokens: int, codec: str) -> int:
        """Tokens that all pages of one (layer, KV head) have room for."""
        return self.num_pages(num_tokens, codec) * self.page_tokens(codec)


def page_rows_for(codec: str) -> int:
    """Rows of a page that suit a codec: a klt page then holds 128 tokens."""
    name = read_codec(codec)
    return -(-int(KLT_PAGE_TOKENS * name.bits) // 8) if name.family == "klt" else DEFAULT_PAGE_ROWS


def block_frames(frames_per_chunk: int) -> int:
    """Frames that klt transforms together: the largest divisor of a chunk's frames up to MAX_BLOCK_FRAMES."""
    return max(frames for frames in range(1, MAX_BLOCK_FRAMES + 1) if frames_per_chunk % frames == 0)
