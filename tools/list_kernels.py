"""Lists the resources of every kernel, compiled for A100 and H100 class GPUs. Needs no GPU; takes minutes.

    python tools/list_kernels.py
    python tools/list_kernels.py --capability 90 --json
    python tools/list_kernels.py > benchmarks/results/kernels.txt
    python tools/list_kernels.py --cost --before earlier.json > benchmarks/results/kernels_cost.txt

Registers and spilled bytes are per thread, shared memory is per block. Limits: 255 registers; 163 KiB of shared memory
on compute capability 8.0, 227 KiB on 9.0. With --cost only kernels that decode: instructions per decoded value by class
(how they are counted: tools/kernels/cost.py), and their sum in an earlier list made with --json. Needs Triton, whose
wheel contains the assembler and the disassembler.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernels.catalogue import launches
from kernels.compile import Resources, compile_launch
from kernels.cost import CLASSES


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", choices=(80, 90), default=[80, 90])
    parser.add_argument("--kernels", nargs="+", help="only kernels of these names (default: all)")
    parser.add_argument("--labels", nargs="+", help="only configurations of these names (default: all)")
    parser.add_argument("--main", action="store_true", help="only the first configuration of each kernel")
    parser.add_argument("--cost", action="store_true", help="instructions per decoded value, of kernels that decode")
    parser.add_argument("--before", type=Path, metavar="JSON", help="an earlier list, to compare the cost with")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    arguments = parser.parse_args(argv)
    chosen = [
        launch
        for launch in launches()
        if (arguments.kernels is None or launch.kernel.__name__ in arguments.kernels)
        and (arguments.labels is None or launch.label in arguments.labels)
        and (launch.values or not arguments.cost)
    ]
    if arguments.main:
        chosen = list({launch.kernel.__name__: launch for launch in reversed(chosen)}.values())[::-1]
    resources = []
    for launch in chosen:
        for capability in arguments.capability:
            if capability < launch.capability:
                continue
            print(f"compiling {launch.kernel.__name__} ({launch.label}) for {capability}", file=sys.stderr, flush=True)
            resources.append(compile_launch(launch, capability))
    if arguments.json:
        print(json.dumps([asdict(each) for each in resources], indent=2))
    elif arguments.cost:
        print(format_cost(resources, json.loads(arguments.before.read_text()) if arguments.before else []))
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


def format_cost(resources: Sequence[Resources], before: Sequence[Mapping[str, Any]]) -> str:
    """A launch is compared with the one of the same configuration and capability, whatever its kernel was called."""
    earlier = {(each["label"], each["capability"]): sum(each["cost"].values()) for each in before if each["cost"]}
    kinds = ("alu", *CLASSES)
    head = f"{'kernel':<21}{'configuration':<35}{'sm':>3}" + "".join(f"{kind:>8}" for kind in kinds)
    head += f"{'sum':>8}{'before':>8}{'ratio':>7}{'regs':>6}{'spill':>6}{'KiB':>6}"
    lines = []
    for each in resources:
        total, old = sum(each.cost.values()), earlier.get((each.label, each.capability))
        compared = f"{old:>8.1f}{total / old:>7.2f}" if old else f"{'-':>8}{'-':>7}"
        counts = "".join(f"{each.cost[kind]:>8.2f}" for kind in kinds)
        lines.append(
            f"{each.kernel:<21}{each.label:<35}{each.capability:>3}{counts}{total:>8.1f}{compared}"
            f"{each.registers:>6}{each.spilled_bytes:>6}{each.shared_bytes / 1024:>6.1f}"
        )
    return "\n".join([head, "-" * len(head), *lines])


if __name__ == "__main__":
    main()
