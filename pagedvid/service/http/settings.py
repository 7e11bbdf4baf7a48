"""What the app is told when it is made: the model that is served, the limits, and who may call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from pagedvid.config.serving import ServeConfig
from pagedvid.engine.requests import LaterPrompt
from pagedvid.engine.timed_prompts import TimedPrompt, later_prompts

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a service that listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServedModel:
    """What clients may know of the model."""

    name: str
    frames_per_second: float
    """Of the output frames."""
    width: int | None = None
    """Pixels of the videos; None where only the first chunk tells."""
    height: int | None = None
    frames_per_latent: int = 1
    """Output frames of every latent frame but the first, which gives one."""
    default_num_frames: int = 48
    """The model's frames of a video whose request does not say how many."""
    takes_frames: bool = False
    """See `ModelSpec`."""
    actions: tuple[str, ...] = ()
    """See `ModelSpec`; none for a model that cannot be steered."""
    example_prompt: str = ""
    """See `ModelSpec`."""

    @property
    def size(self) -> str | None:
        """Width and height such as "832x480"; None where only the first chunk tells."""
        return None if self.width is None or self.height is None else f"{self.width}x{self.height}"

    def num_frames(self, seconds: float, goes_on: bool = False) -> int:
        """The model's frames that a video of this length needs, at least one. `goes_on`, here and below: whether
        it goes on from given frames; then its first frame gives as many output frames as the others."""
        num_output_frames = max(1, round(seconds * self.frames_per_second))
        return 1 - min(0, self._of_first(goes_on) - num_output_frames) // self.frames_per_latent

    def later_prompts(
        self, timed: Sequence[TimedPrompt], num_frames: int, goes_on: bool = False
    ) -> tuple[LaterPrompt, ...]:
        """Prompts by time as prompts by the model's frames, in a video of so many. Raises ConfigError."""
        speed, of_first = self.frames_per_second, self._of_first(goes_on)
        return later_prompts(timed, num_frames, speed, self.frames_per_latent, of_first)

    def seconds(self, num_frames: int, goes_on: bool = False) -> float:
        """The length of a video of so many of the model's frames."""
        return (self._of_first(goes_on) + (num_frames - 1) * self.frames_per_latent) / self.frames_per_second

    def _of_first(self, goes_on: bool) -> int:
        """Output frames of a video's first latent frame."""
        return self.frames_per_latent if goes_on else 1


@dataclass(frozen=True)
class ServeSettings:
    """Everything that the app is made of, besides the sessions."""

    model: ServedModel
    limits: ServeConfig = field(default_factory=ServeConfig)
    api_key: str | None = field(default=None, repr=False)
    """None: everybody may call."""
    is_loopback: bool = True
    """Whether only programs on this machine reach the service."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names by which it may be called; "*": any."""
        if self.limits.hosts is not None:
            return tuple(self.limits.hosts.split(","))
        return LOOPBACK_HOSTS if self.is_loopback else ("*",)

    @property
    def cors_origins(self) -> tuple[str, ...]:
        """Other sites whose pages may call it."""
        return tuple((self.limits.cors_origins or "").split(",")) if self.limits.cors_origins else ()
