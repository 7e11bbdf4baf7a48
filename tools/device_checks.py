"""What a machine with a CUDA device is asked, most worth knowing first: `tools/gpu.sh` runs this.

Each part has its own time limit, so that one that hangs or crashes costs only itself. What a part prints goes to
FOLDER/<part>.log while it runs, its figures to FOLDER/<part>.json, and summary.txt is written anew after every part.

    python tools/device_checks.py             # into $OUT, or outputs/gpu
    python tools/device_checks.py FOLDER
    python tools/device_checks.py --dry-run   # what would run; needs no device
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 360
MOST_PROCESSES = 12
SHAPE = ("--device", "cuda", "--shapes", "wan-1.3b")
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib")
"""pytest without the plugins that pyproject.toml counts on."""
SHOWN_LINES = 15


@dataclass(frozen=True)
class Command:
    """One process: what runs, and environment variables that it gets in addition."""

    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    may_be_missing: bool = False
    """Whether a program that is not installed is no failure."""

    def __str__(self) -> str:
        return " ".join([*(f"{name}={value}" for name, value in self.variables), *self.words])


@dataclass(frozen=True)
class Part:
    """Commands that answer one question."""

    name: str
    limit_seconds: float
    """For all commands of the part together."""
    commands: tuple[Command, ...]
    together: bool = False
    """Whether all commands start at once; otherwise each after the one before has ended."""


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    part: str
    seconds: float
    result: str
    is_good: bool


def python(*words: str, **variables: str) -> Command:
    """A command of this interpreter."""
    return Command((sys.executable, *words), tuple(variables.items()))


def parts(folder: Path, num_processes: int, has_av: bool) -> list[Part]:
    """What to run, most worth knowing first. `has_av`: whether videos can be written."""
    kernels = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("kernels/test_*.py"))
    tests = ("tests/attention/test_gpu.py", *kernels)  # the first has real tile sizes
    whole = ("tests/engine/test_demo_on_gpu.py", "tests/networks/test_captured_on_gpu.py")
    demo = [python(*PYTEST, "-v", *whole, "-k", "not compiled")]  # compiling takes too long here
    if has_av:
        videos = ("--out", "outputs/demo_cuda", "--overwrite", "--set", "model.device=cuda")
        demo.append(python("-m", "pagedvid", "generate", "--prompts", "configs/demo_prompts.txt", *videos))
    attention = ("--chunks", "6", "--streams", "1", "4", "--codecs", "int2", "klt1.5/klt3")
    return [
        Part("facts", 25, (python("-m", "pagedvid", "env"), Command(("nvidia-smi",), may_be_missing=True))),
        Part(
            "parity",
            130,
            tuple(
                python(
                    *PYTEST,
                    "-p",
                    "shard",
                    "-p",
                    "no:terminal",
                    *tests,
                    SHARD=f"{number}/{num_processes}",
                    OMP_NUM_THREADS="1",
                )
                for number in range(num_processes)
            ),
            together=True,
        ),
        Part(
            "attention",
            90,
            (python("benchmarks/attention.py", *SHAPE, *attention, "--out", str(folder / "attention.json")),),
        ),
        Part("commit", 45, (python("benchmarks/commit.py", *SHAPE, "--out", str(folder / "commit.json")),)),
        Part("demo", 60, tuple(demo)),
    ]


def run(part: Part, folder: Path) -> Outcome:
    """Runs a part's commands; what they print is in FOLDER/<part>.log as soon as they print it."""
    started = time.monotonic()
    deadline = started + part.limit_seconds
    problems: list[str] = []
    with (folder / f"{part.name}.log").open("w") as log:
        groups = [part.commands] if part.together else [(command,) for command in part.commands]
        for commands in groups:
            problems += _run_together(commands, deadline, log.fileno())
    seconds = time.monotonic() - started
    counts = {problem: problems.count(problem) for problem in problems}
    written = [f"{problem} ({count} of {len(part.commands)})" for problem, count in counts.items()]
    return Outcome(part.name, seconds, ", ".join(written) or "passed", not problems)


def _run_together(commands: Sequence[Command], deadline: float, log: int) -> list[str]:
    """Starts the commands at once and returns what went wrong, by the deadline."""
    running: list[subprocess.Popen[bytes]] = []
    problems: list[str] = []
    for command in commands:
        os.write(log, f"$ {command}\n".encode())
        try:
            running.append(_start(command, log))
        except FileNotFoundError as error:
            os.write(log, f"{error}\n".encode())
            if not command.may_be_missing:
                problems.append("not found")
    try:
        for process in running:
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                problems.append("time limit")
            else:
                problems += [f"exit code {code}"] if code else []
    finally:
        for process in running:
            _end(process)
    return problems


def _start(command: Command, log: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **dict(command.variables)}
    return subprocess.Popen(
        command.words,
        cwd=ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and whatever it has started, which are a process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line per part."""
    rows = [(each.part, f"{each.seconds:.0f}", each.result) for each in outcomes]
    return "\n".join(
        f"{part:12}{seconds:>8}  {result}" for part, seconds, result in [("part", "seconds", "result"), *rows]
    )


def run_all(plan: Sequence[Part], folder: Path) -> list[Outcome]:
    """Runs every part, whatever became of those before; prints the end of each log."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for part in plan:
        print(f"== {part.name} (at most {part.limit_seconds:g} s)", flush=True)
        outcomes.append(run(part, folder))
        lines = (folder / f"{part.name}.log").read_text(errors="replace").splitlines()
        print("\n".join(lines[-SHOWN_LINES:]), flush=True)
        (folder / "summary.txt").write_text(summary(outcomes) + "\n")
    print(f"\n{summary(outcomes)}\n\nwritten to {folder}", flush=True)
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs everything and returns the exit code: 1 if a part did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OUT") or ROOT / "outputs" / "gpu")
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="for the results (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    arguments = parser.parse_args(argv)
    folder = arguments.folder.resolve()
    plan = parts(folder, min(MOST_PROCESSES, os.cpu_count() or 1), importlib.util.find_spec("av") is not None)
    if arguments.dry_run:
        for part in plan:
            how = "at once" if part.together else "one after the other"
            print(f"{part.name}: at most {part.limit_seconds:g} s, {how}")
            print("\n".join(f"    {command}" for command in part.commands))
        return 0
    return int(not all(outcome.is_good for outcome in run_all(plan, folder)))


if __name__ == "__main__":
    raise SystemExit(main())
