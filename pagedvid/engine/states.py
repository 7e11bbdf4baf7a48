"""The states of a video in an engine. A video that ended and is not kept has none: the engine has forgotten it."""

WAITING = "waiting"
"""Accepted; it has no stream yet."""
RUNNING = "running"
"""It has a stream and takes part in steps."""
PAUSED = "paused"
"""Nothing is done for it until it is resumed; its pages stay where they are."""
SWAPPED = "swapped"
"""Its pages are in host memory; it goes on when the pool has room for them and it is not paused."""
FINISHED = "finished"
"""All frames are out, and its pages are kept for forks and extensions."""

STATES = (WAITING, RUNNING, PAUSED, SWAPPED, FINISHED)
