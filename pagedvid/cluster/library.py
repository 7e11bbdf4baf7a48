"""Ray and fsspec, the libraries of the extra `ray`, imported when they are needed."""

from __future__ import annotations

from typing import Any

from pagedvid.errors import ConfigError

INSTALL = "pip install 'pagedvid[ray]'"


def ray_library() -> Any:
    """The module `ray`. Raises ConfigError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"workers on several devices need the library Ray ({error}): {INSTALL}") from error
    return ray


def pickle_library() -> Any:
    """Ray's `cloudpickle`, which also pickles functions. Raises ConfigError if Ray is not installed."""
    ray_library()
    from ray import cloudpickle

    return cloudpickle


def files_library() -> Any:
    """The module `fsspec`. Raises ConfigError if it is not installed."""
    try:
        import fsspec
    except ImportError as error:
        raise ConfigError(f"workers write their files with the library fsspec ({error}): {INSTALL}") from error
    return fsspec
