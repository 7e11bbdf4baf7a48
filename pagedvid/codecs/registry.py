"""The codecs by name.

    fp32 bf16                 values as they are
    int2 int4 int8            a step size and a zero point per channel and page (fp16): 4 rows, the rest holds codes
      -pair                     the two channels of a rotary pair share their step size
      -s8                       step sizes in 8 bits (a power of 2^(1/6))
      -post                     keys are stored after rotary embedding
    token2-g64 token4-g32     a step size and a zero point per token and group of channels; keys after rotary embedding
    hadamard2-g64             the same on channels rotated by a Hadamard matrix
    klt2 klt1.5               transform coding with that many bits per value, scales included; needs calibrated tables
    mean                      no pages: every token reads as its head's mean; needs calibrated tables
    sim                       fp32 pages for a codec under study: counts as quantized, see book.py

    tokens of a page of 36 rows:  int2 128, int4 64, int8 32, bf16 18, fp32 9       of 32 rows:  klt2 128

A ladder is a family's codecs by rising bits, its rungs; budgets/ chooses one for the keys and the values of every head.

To add a codec: a folder with its `CodecSpec` and its `Codec` (the readable reference, and kernels if it has any), and
one line in `_FAMILIES`. From outside the package: call `register_codecs`, or declare an entry point of the group
"pagedvid.codecs" whose object is a `CodecFamily`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points

from pagedvid.codecs.channel.spec import CHANNEL_LADDER, read_channel
from pagedvid.codecs.klt.spec import KLT_LADDER, read_klt
from pagedvid.codecs.mean.spec import read_mean
from pagedvid.codecs.raw.spec import read_raw
from pagedvid.codecs.spec import CodecSpec
from pagedvid.codecs.token.spec import read_token
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

ENTRY_POINT_GROUP = "pagedvid.codecs"


@dataclass(frozen=True)
class CodecFamily:
    """Codecs that share an implementation."""

    names: str
    """The form of the names, for error messages: "int8, int4, int2 (with -pair)"."""
    read: Callable[[str], CodecSpec | None]
    """Returns the spec for a name, or None for a name of another family."""


_FAMILIES = [
    CodecFamily("fp32, bf16", read_raw),
    CodecFamily("int8, int4, int2 (with -pair, -s8, -post in this order)", read_channel),
    CodecFamily("token2-g64, hadamard2-g64 (2, 4 or 8 bits, groups of 16 to 128)", read_token),
    CodecFamily("klt2 (0.5 to 8 bits, such as klt1.5)", read_klt),
    CodecFamily("mean", read_mean),
]
LADDERS = {"klt": KLT_LADDER, "int": CHANNEL_LADDER}
"""By the name that settings have for them."""


def register_codecs(family: CodecFamily) -> None:
    """Makes the codecs of a family known by name. Families registered earlier take precedence."""
    _FAMILIES.append(family)
    read_codec.cache_clear()


def codec_names() -> str:
    """The forms of the names of registered codecs, for messages."""
    return ", ".join(family.names for family in _FAMILIES)


@lru_cache(maxsize=256)
def read_codec(name: str) -> CodecSpec:
    """The spec of the codec of that name. Raises ConfigError."""
    for family in _FAMILIES:
        if (spec := family.read(name)) is not None:
            return spec
    for family in _installed_families():  # last, because scanning the installed packages takes milliseconds
        if (spec := family.read(name)) is not None:
            return spec
    allowed = ", ".join([codec_names(), *(family.names for family in _installed_families())])
    raise ConfigError(f"unknown codec {shown(name)}; allowed are {allowed}")


@lru_cache(maxsize=1)
def _installed_families() -> tuple[CodecFamily, ...]:
    """The families of other installed packages. Raises ConfigError for an entry point that is not a `CodecFamily`."""
    families = []
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        family = entry.load()
        if not isinstance(family, CodecFamily):
            raise ConfigError(
                f"the entry point {entry.name} = {entry.value} of {ENTRY_POINT_GROUP} is {shown(family)}; it must "
                "name a pagedvid.codecs.registry.CodecFamily"
            )
        families.append(family)
    return tuple(families)
