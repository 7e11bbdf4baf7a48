"""Sends Python objects from rank 0 to all ranks, in order, over a process group of its own with a timeout of days."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

LONGEST_SILENCE = timedelta(days=7)


@dataclass
class Control:
    """Rank 0 broadcasts an object with `tell`; every other rank receives it with one `hear`."""

    group: dist.ProcessGroup
    has_ended: bool = field(default=False, init=False)

    @staticmethod
    def of_all() -> Control:
        """Of all processes of the default group, through host memory. All of them must call it."""
        return Control(dist.new_group(backend="gloo", timeout=LONGEST_SILENCE))

    @property
    def rank(self) -> int:
        """Of this process."""
        return dist.get_rank(self.group)

    def tell(self, told: Any) -> None:
        """By rank 0: any object that can be pickled, except None."""
        dist.broadcast_object_list([told], group=self.group, group_src=0)

    def hear(self) -> Any:
        """By the others: what rank 0 told next; None: nothing more will come."""
        heard = [None]
        dist.broadcast_object_list(heard, group=self.group, group_src=0)
        return heard[0]

    def end(self) -> None:
        """By rank 0: nothing more will come. Without effect when called again."""
        if not self.has_ended:
            self.has_ended = True
            self.tell(None)

    def shared(self, mine: Any) -> list[Any]:
        """All-gather, called by all ranks: what each of them gave, in order of rank."""
        given = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(given, mine, self.group)
        return given
