"""`generate.threads: auto`: one thread or all, whichever made the first steps of a run faster.

Many short operations on cores that other programs use can be faster with one thread. The steps are those of the run
itself, so the choice costs a few slower steps and no further work. It is made once. The number of threads changes the
frames by rounding only, and not at all when `engine.reproducible` is set, because then nothing is timed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pagedvid.cli.cores import usable_cores

if TYPE_CHECKING:
    from pagedvid.config.sections import Config

logger = logging.getLogger(__name__)

LONG_STEP_SECONDS = 5.0
"""A step that takes so long with all threads has long operations, which gain from all of them."""
CLEARLY_SLOWER = 2.0
"""One thread that takes so many times as long as all need not be tried twice."""

R = TypeVar("R")


class ThreadChoice:
    """The number of threads of a run, which is fixed, or chosen while its first steps are made."""

    def __init__(self, num_all: int, set_threads: Callable[[int], object], *, is_timed: bool = True) -> None:
        """`num_all`: the threads that there are. `is_timed`: False keeps all of them."""
        self._num_all = self._num_threads = num_all
        self._set_threads = set_threads
        self._to_try = [num_all, 1, 1, num_all, num_all] if is_timed and num_all > 1 else []
        """The first step warms up. Neighbours in pairs: denoise steps and commit passes may take turns."""
        self._seconds: list[float] = []

    @staticmethod
    def of(config: Config) -> ThreadChoice:
        """What the settings say, applied to PyTorch."""
        import torch

        written, devices = config.generate.threads, config.generate.devices
        if written != "auto":
            torch.set_num_threads(int(written))
        elif devices > 1 and config.model.device == "cpu":  # the same number on all, which share the cores
            torch.set_num_threads(max(1, len(usable_cores()) // devices))
        one_device = config.model.device == "cpu" and devices == 1
        # The first steps of a compiled model compile it, once for each number of threads.
        is_timed = written == "auto" and one_device and not config.engine.reproducible and not config.model.compile
        return ThreadChoice(torch.get_num_threads(), torch.set_num_threads, is_timed=is_timed)

    def run(self, step: Callable[[], R]) -> R:
        """Makes a step; the first ones are timed."""
        if len(self._seconds) == len(self._to_try):
            return step()
        number = self._to_try[len(self._seconds)]
        self._set_threads(number)
        started = time.perf_counter()
        try:
            result = step()
        finally:
            self._seconds.append(time.perf_counter() - started)
            self._set_threads(self._num_all)
        if self._is_clear():
            self._to_try = self._to_try[: len(self._seconds)]  # all threads, as they are set
        elif len(self._seconds) == len(self._to_try):
            self._choose()
        return result

    @property
    def num_threads(self) -> int:
        """The threads in use."""
        return self._num_threads

    def _is_clear(self) -> bool:
        """Whether all threads need no further comparison after the latest step."""
        with_all, *later = self._seconds
        return with_all > LONG_STEP_SECONDS or (len(later) == 1 and later[0] > CLEARLY_SLOWER * with_all)

    def _choose(self) -> None:
        _, *one, first, second = self._seconds
        seconds_of_one, seconds_of_all = min(one), min(first, second)
        self._num_threads = 1 if seconds_of_one < seconds_of_all else self._num_all
        self._set_threads(self._num_threads)
        logger.info(
            "threads: %d (a step takes %.3f s with one, %.3f s with %d)",
            self._num_threads,
            seconds_of_one,
            seconds_of_all,
            self._num_all,
        )
