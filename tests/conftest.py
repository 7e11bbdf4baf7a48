"""Settings of the whole test suite: one thread, and property tests that try the same examples in every run.

`pytest --hypothesis-profile=explore` draws new and more examples.
"""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=50, database=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("fixed")
