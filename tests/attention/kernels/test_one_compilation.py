"""Kernels of attention are compiled once for a model: not again for other lengths, strides, codecs or addresses.

The argument types that Triton compiles a kernel for are found without a device, in a process of its own, because the
interpreter has replaced the kernels of this one.
"""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from pagedvid.attention.kernels import merge
from pagedvid.rotary import kernels as rotary
from tests.attention.partials import Case
from tests.rotary.arrangements import Arrangement

BACKEND = make_backend(GPUTarget("cuda", 90, 32))


class Recorder:
    def __init__(self, kernel):
        self.bind = create_function_from_signature(kernel.signature, kernel.params, BACKEND)
        self.seen = set()

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.seen.add(str(self.bind(*arguments, **constants)[1]))


def anywhere(x, offset):
    return x.new_empty(x.numel() + offset)[offset:].view(x.shape)


merge.merge_kernel, rotary.arrange_kernel = Recorder(merge.merge_kernel), Recorder(rotary.arrange_kernel)
SHAPES = [(1, 6, 470, 12), (1, 1, 1, 12), (3, 13, 47, 12), (2, 6, 33, 1), (1, 1, 1, 1), (1, 16, 16, 16)]
for number, shape in enumerate(SHAPES):
    case = Case.draw(
        (*shape, 1, 64), dtype=torch.bfloat16, num_variants=1 + number % 2, alpha=number % 3 > 0,
        head_major=number % 2 == 0,
    )
    own, others = ((out, anywhere(lse, number)) for out, lse in (case.own, case.others))
    merge.merge(own, [others], torch.empty_like(case.own[0]), bias=case.bias, q_EVTHD=case.q_EVTHD, scale=0.1)
for num_runs, num_tokens, heads in [(1, 470, (12, 12)), (3, 16, (12, 12)), (2, 1, (3, 1)), (1, 1, (1, 1))]:
    step = Arrangement.draw(num_runs, num_tokens, heads, 64, torch.bfloat16)
    starts = anywhere(step.starts, num_runs)
    rotary.arrange(step.q, step.k, step.v, starts, num_tokens, "half", step.angles, *step.outputs())
    rotary.arrange(None, step.k, None, starts, num_tokens, "half", step.angles, None, step.outputs()[1], None)
print(len(merge.merge_kernel.seen), len(rotary.arrange_kernel.seen))
"""


def test_merge_and_arrange() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1"]
