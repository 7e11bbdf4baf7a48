"""Makes Triton's interpreter faster: it prepares its language once for each kernel, not for each call inside of it.

The interpreter replaces every builtin of `triton.language` when a kernel starts. It also goes through the whole
language again whenever a kernel calls a function, where nothing is left to replace: a third of the time of these tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def prepare_the_language_once() -> None:
    """For the rest of the process."""
    prepare = interpreter._patch_lang

    def prepare_if_needed(function: Callable[..., Any]) -> Any:
        if any(tl.core.is_builtin(language.load) for language in _languages(function)):
            return prepare(function)
        return interpreter._LangPatchScope()  # nothing to restore

    interpreter._patch_lang = prepare_if_needed


@cache
def _languages(function: Callable[..., Any]) -> tuple[ModuleType, ...]:
    """Those modules of the language that the function sees."""
    return tuple(seen for seen in function.__globals__.values() if seen is tl or seen is tl.core)
