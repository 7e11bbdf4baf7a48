"""What this service and its model allow of a request that is well formed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from pagedvid.engine.requests import LaterPrompt
from pagedvid.engine.timed_prompts import read_timed_prompts
from pagedvid.errors import ConfigError
from pagedvid.files.text import check_text
from pagedvid.service.http.errors import RequestError
from pagedvid.service.http.schemas import TimedPrompt
from pagedvid.service.http.settings import ServeSettings
from pagedvid.service.records import Reference
from pagedvid.shown import short

MAX_ANY_SEED = 2**31


class Checks:
    """The limits of one service. All methods raise RequestError, which says what is allowed."""

    def __init__(self, settings: ServeSettings) -> None:
        self._model, self._limits = settings.model, settings.limits

    def prompt(self, prompt: str, param: str = "prompt") -> str:
        """The prompt as given, as the parameter of this name. Raises RequestError if it is empty or too long."""
        most = self._limits.max_prompt_characters
        try:
            check_text(prompt)
        except ConfigError as error:
            raise RequestError(f"{param}: {error}", param) from None
        if not prompt.strip():
            raise RequestError(f"{param} is empty; say what the video shows", param)
        if len(prompt) > most:
            raise RequestError(f"{param} has {len(prompt)} characters; at most {most} are allowed", param)
        return prompt

    def prompts(
        self, prompt: str | None, timed: Sequence[TimedPrompt] | None, num_frames: int, goes_on: bool = False
    ) -> tuple[str, tuple[LaterPrompt, ...]]:
        """The first prompt, and those that take over in a video of so many of the model's frames; for `goes_on` see
        `ServedModel`. Raises RequestError for both or neither of the two ways to give them, and for times that are not
        possible."""
        if prompt is not None and timed is not None:
            raise RequestError("prompt and prompts are both given; leave one of them out", "prompts")
        if timed is None:
            if prompt is None:
                raise RequestError("prompt is missing", "prompt")
            return self.prompt(prompt), ()
        for number, entry in enumerate(timed):
            self.prompt(entry.prompt, f"prompts.{number}.prompt")
        try:
            first, later = read_timed_prompts([entry.model_dump() for entry in timed])
            return first, self._model.later_prompts(later, num_frames, goes_on)
        except ConfigError as error:
            raise RequestError(str(error), "prompts") from None

    def optional_prompt(self, prompt: str | None) -> str | None:
        """As `prompt`; None stays None."""
        return None if prompt is None else self.prompt(prompt)

    def num_frames(self, num_frames: int | None, param: str = "num_frames") -> int:
        """The number of the model's frames; for None, the default. Raises RequestError for too many."""
        num_frames = self._model.default_num_frames if num_frames is None else num_frames
        most = self._limits.max_frames
        if num_frames > most:
            longest = f"{self._model.seconds(most):.6g} seconds"
            raise RequestError(f"{param}: {num_frames} frames are too many; at most {most} ({longest})", param)
        return num_frames

    def seconds(self, seconds: float | None, goes_on: bool = False) -> int:
        """The number of the model's frames of a video of this length; for None, the default. For `goes_on` see
        `ServedModel`. Raises RequestError."""
        return self.num_frames(None if seconds is None else self._model.num_frames(seconds, goes_on), "seconds")

    def reference(self, reference: Reference | None) -> None:
        """Raises RequestError for a file to go on from if the model cannot."""
        if reference is not None and not self._model.takes_frames:
            raise RequestError(
                f"{self._model.name} takes no image or video file; leave input_reference out", "input_reference"
            )

    def model(self, name: str | None) -> None:
        """Raises RequestError unless the model is the one that is served."""
        if name not in (None, self._model.name):
            raise RequestError(f"model is {short(name or '')!r}; this service has {self._model.name!r}", "model")

    def size(self, size: str | None) -> None:
        """Raises RequestError unless the size is that of the model's videos."""
        own = self._model.size
        if size is not None and size.strip().lower() != own:
            allowed = f"videos of {self._model.name} are {own}" if own else f"{self._model.name} has a size of its own"
            raise RequestError(f"size is {short(size)!r}; {allowed}: give that size or none", "size")

    def num_continuations(self, number: int) -> None:
        """Raises RequestError for more continuations than one fork may have."""
        most = self._limits.max_continuations
        if number > most:
            raise RequestError(f"{number} continuations are too many; at most {most} at once", "continuations")

    def seed(self, seed: int | None) -> int:
        """The seed; for None, any."""
        return secrets.randbelow(MAX_ANY_SEED) if seed is None else seed
