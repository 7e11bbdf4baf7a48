"""How far back a model looks: what people write as its `window`, in a card or as --window.

    sliding    the first chunks (sinks) and the newest ones are kept; the current chunk joins them when it is committed
               0+6:       [ . . . . . . | current ]       7 chunks stored at the peak
    rebuilt    for every chunk the model picks frames, stores their keys and values in one pass and then only reads them
               20frames:  [ . . . . . ]   current         5 chunks of 4 frames; the current chunk is never stored

None of these numbers counts the chunk being denoised. Where a publication counts the current chunk or the sinks as part
of a window, the model's card states the numbers without them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pagedvid.errors import ConfigError
from pagedvid.shown import shown

MAX_LENGTH = 10**9
"""Most chunks or frames; more is a typing mistake."""


@dataclass(frozen=True)
class SlidingLookBack:
    """The first chunks and the newest chunks."""

    sink_chunks: int
    recent_chunks: int

    def __str__(self) -> str:
        return f"{self.sink_chunks}+{self.recent_chunks}"

    def with_length(self, length: int) -> SlidingLookBack:
        """The same sinks and `length` recent chunks."""
        return replace(self, recent_chunks=length)

    def num_frames(self, frames_per_chunk: int) -> int:
        """Latent frames that are kept."""
        return (self.sink_chunks + self.recent_chunks) * frames_per_chunk


@dataclass(frozen=True)
class RebuiltLookBack:
    """Frames that are chosen and stored anew for every chunk."""

    memory_frames: int

    def __str__(self) -> str:
        return f"{self.memory_frames}frames"

    def with_length(self, length: int) -> RebuiltLookBack:
        """`length` frames."""
        return RebuiltLookBack(length)

    def num_frames(self, frames_per_chunk: int) -> int:
        """Latent frames that are kept."""
        return self.memory_frames


LookBack = SlidingLookBack | RebuiltLookBack


def read_look_back(written: object) -> LookBack:
    """Reads "1+6" (sink and recent chunks) or "20frames". Raises ConfigError."""
    word = str(written).replace(" ", "")
    if match := re.fullmatch(r"(\d{1,12})\+(\d{1,12})", word, re.ASCII):
        sink_chunks, recent_chunks = map(int, match.groups())
        if sink_chunks <= MAX_LENGTH and 1 <= recent_chunks <= MAX_LENGTH:
            return SlidingLookBack(sink_chunks, recent_chunks)
    elif (match := re.fullmatch(r"(\d{1,12})frames?", word, re.ASCII)) and 1 <= int(match[1]) <= MAX_LENGTH:
        return RebuiltLookBack(int(match[1]))
    raise ConfigError(
        f"window is {shown(written)}; write SINK+RECENT in chunks (0+6, at least one recent), frames (18frames) or "
        f"seconds (4.5s); the current chunk does not count, and {MAX_LENGTH} is the most"
    )
