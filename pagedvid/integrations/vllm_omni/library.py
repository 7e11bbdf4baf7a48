"""Which vLLM-Omni can be used: checked before anything of it is imported.

The classes that are derived from here are marked experimental there and change from release to release, so versions are
named one by one. vllm-omni is optional and not installed by any extra of pagedvid: docs/engines.md says how.
"""

from __future__ import annotations

from importlib import metadata

from pagedvid.errors import ConfigError

TESTED_VERSIONS = ("0.30.0",)
"""Those that tests/engines ran with."""


def require_vllm_omni() -> None:
    """Raises ConfigError unless a version of vllm-omni is installed that this adapter was tested with."""
    allowed = " or ".join(TESTED_VERSIONS)
    advice = f"pip install vllm-omni=={TESTED_VERSIONS[-1]}"
    try:
        found = metadata.version("vllm-omni")
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"pagedvid.integrations.vllm_omni needs vllm-omni {allowed}; none is installed: {advice}"
        ) from error
    if found not in TESTED_VERSIONS:
        raise ConfigError(
            f"pagedvid.integrations.vllm_omni needs vllm-omni {allowed}; installed is {found}, whose video engine may "
            f"differ: {advice}, or a pagedvid that names {found}"
        )
