"""Lists the resources of every kernel, compiled for A100 and H100 class GPUs. Needs no GPU; takes minutes.

    python tools/list_kernels.py
    python tools/list_kernels.py --capability 90 --json
    python tools/list_kernels.py > benchmarks/results/kernels.txt

Registers and spilled bytes are per thread, shared memory is per block. Limits: 255 registers; 163 KiB of shared memory
on compute capability 8.0, 227 KiB on 9.0. Needs Triton, whose wheel contains the assembler.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from kernels.catalogue import launches
from kernels.compile import Resources, compile_launch


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", choices=(80, 90), default=[80, 90])
    parser.add_argument("--kernels", nargs="+", help="only kernels of these names (default: all)")
    parser.add_argument("--main", action="store_true", help="only the first configuration of each kernel")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    arguments = parser.parse_args(argv)
    chosen = [
        launch for launch in launches() if arguments.kernels is None or launch.kernel.__name__ in arguments.kernels
    ]
    if arguments.main:
        chosen = list({launch.kernel.__name__: launch for launch in reversed(chosen)}.values())[::-1]
    resources = []
    for launch in chosen:
        for capability in arguments.capability:
            print(f"compiling {launch.kernel.__name__} ({launch.label}) for {capability}", file=sys.stderr, flush=True)
            resources.append(compile_launch(launch, capability))
    if arguments.json:
        print(json.dumps([asdict(each) for each in resources], indent=2))
    else:
        print(format_resources(resources))


def format_resources(resources: Sequence[Resources]) -> str:
    head = f"{'kernel':<30}{'configuration':<38}{'sm':>4}{'warps':>7}{'registers':>11}{'spilled':>9}{'shared KiB':>12}"
    lines = [
        f"{each.kernel:<30}{each.label:<38}{each.capability:>4}{each.num_warps:>7}{each.registers:>11}"
        f"{each.spilled_bytes:>9}{each.shared_bytes / 1024:>12.1f}"
        for each in resources
    ]
    return "\n".join([head, "-" * len(head), *lines])


if __name__ == "__main__":
    main()
