"""Names of tensors as the networks have them, whatever training or another program has wrapped around them.

    module.                            DistributedDataParallel, DataParallel
    _fsdp_wrapped_module.              FullyShardedDataParallel
    _orig_mod.                         torch.compile
    _checkpoint_wrapped_module.        activation checkpointing
    model.  generator.                 Self-Forcing, CausVid, Krea, LongLive
    diffusion_model.                   ComfyUI, with or without model. in front

A wrapper takes the place of the module that it wraps, so its segment can be anywhere in a name, and several can be
nested. No network here has a module of such a name.
"""

from __future__ import annotations

from collections.abc import Iterable

from pagedvid.errors import ConfigError

TABLES = {True: ("generator_ema", "generator"), False: ("generator", "generator_ema")}
"""By whether averaged weights are preferred: the tables of a file that may hold the network, best first. In a
.safetensors file they are the beginnings of names."""
WRAPPERS = frozenset(
    {
        "module",
        "_fsdp_wrapped_module",
        "_orig_mod",
        "_checkpoint_wrapped_module",
        "model",
        "diffusion_model",
        *TABLES[True],
    }
)
"""Segments that are no part of a network's names."""


def plain_name(published: str) -> str:
    """The name without wrappers; the last segment names the tensor and is kept."""
    *modules, leaf = published.split(".")
    return ".".join([*(module for module in modules if module not in WRAPPERS), leaf])


def in_best_table(published: Iterable[str], prefer_ema: bool) -> list[str]:
    """The names in the best of the `TABLES` that a flat file has; all names where it has none."""
    names = list(published)
    for table in TABLES[prefer_ema]:
        if own := [name for name in names if table in name.split(".")[:-1]]:
            return own
    return names


def by_own_name(names: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Own name -> published name, from pairs of (published, own). Raises ConfigError when two tensors get one name."""
    published_of: dict[str, str] = {}
    for published, own in names:
        if own in published_of:
            both = f"{published_of[own]} and {published}" if published_of[own] != published else f"{published} twice"
            raise ConfigError(f"{where} holds {both}; only one of them can be {own}: remove the other")
        published_of[own] = published
    return published_of
