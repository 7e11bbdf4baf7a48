"""Flags that set settings, shared by all subcommands that need a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pagedvid.config.file import ResolvedConfig, Setting, read_assignment, read_file, read_value, resolve
from pagedvid.config.rules import Rule
from pagedvid.config.sections import Config
from pagedvid.errors import ConfigError
from pagedvid.files.plain_yaml import read_scalar
from pagedvid.shown import shown

Value = TypeVar("Value")

_FLAGS = {
    "model": "model.name",
    "weights": "model.weights",
    "weights-dtype": "model.weights_dtype",
    "kv": "cache.codec",
    "memory": "cache.memory",
    "concurrent": "engine.concurrent",
    "frames": "generate.num_frames",
    "seed": "generate.seed",
    "devices": "generate.devices",
}
_NUMBERS = ("concurrent", "frames", "seed", "devices")


def by_rule(rule: Rule) -> Callable[[str], Any]:
    """The argparse type of a flag whose value follows a rule; it is read as in a configuration file."""

    def read(written: str) -> object:
        try:
            return rule.read(read_scalar(written))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(written)} is not {rule.allowed}") from None

    return read


def by_reader(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """The argparse type of a flag that `read` reads; it raises ConfigError for what it does not allow."""

    def checked(written: str) -> Value:
        try:
            return read(written)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def path_flag(written: str) -> Path:
    """The argparse type of a path. The empty string is refused, because it would be the current folder."""
    if not written:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(written)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds --config, --set and the short forms of the most used settings."""
    group = parser.add_argument_group("settings (defaults < --config < flags < --set)")
    group.add_argument("--config", metavar="FILE", type=path_flag, help="YAML file with settings")
    group.add_argument("--model", metavar="NAME", help="model.name")
    group.add_argument("--weights", metavar="PATH", help="model.weights")
    group.add_argument("--weights-dtype", metavar="FORMAT", help="model.weights_dtype: fp8 keeps weights in 8 bits")
    group.add_argument("--offload", action="store_true", help="model.offload: blocks of the model in host memory")
    group.add_argument("--compile", action="store_true", help="model.compile: by torch.compile, in the first steps")
    group.add_argument("--cuda-graphs", action="store_true", help="model.cuda_graphs: recorded once steps repeat")
    group.add_argument(
        "--lora",
        metavar="PATH[:SCALE]",
        dest="loras",
        action="append",
        help="model.loras: added to the weights; repeatable",
    )
    group.add_argument("--kv", metavar="CODEC", help="cache.codec: auto, klt2, int2, int4/int2 (keys/values), ...")
    group.add_argument("--no-correction", action="store_true", help="cache.correction=off")
    group.add_argument("--memory", metavar="SIZE", help="cache.memory, such as 2GiB")
    group.add_argument("--concurrent", metavar="N|auto", help="engine.concurrent: streams that run at once")
    group.add_argument("--frames", metavar="N", help="generate.num_frames: (latent) frames per video")
    group.add_argument("--seed", metavar="N", help="generate.seed of the first prompt; the next gets N + 1")
    group.add_argument("--devices", metavar="N", help="generate.devices that work on every video together")
    group.add_argument(
        "--set", metavar="KEY=VALUE", dest="assignments", action="append", default=[], help="any setting; repeatable"
    )


def resolve_options(args: argparse.Namespace) -> ResolvedConfig:
    """The settings that a command line gives. Raises `ConfigError`."""
    settings = read_file(args.config) if args.config else []
    for flag, target in _FLAGS.items():
        written = getattr(args, flag.replace("-", "_"))
        if written is not None:
            section, _, key = target.partition(".")
            value = read_value(written, f"--{flag}") if flag in _NUMBERS else written
            settings.append(Setting(section, key, value, f"--{flag}"))
    if args.loras:
        settings.append(Setting("model", "loras", args.loras, "--lora"))
    for name in ("offload", "compile", "cuda_graphs"):
        if getattr(args, name):
            settings.append(Setting("model", name, True, f"--{name.replace('_', '-')}"))
    if args.no_correction:
        settings.append(Setting("cache", "correction", "off", "--no-correction"))
    settings.extend(read_assignment(assignment) for assignment in args.assignments)
    return resolve(settings)


def require_one_device(config: Config, command: str) -> None:
    """Raises ConfigError where several devices are to share the heads, which only `generate` can."""
    if config.generate.devices > 1:
        raise ConfigError(
            f"generate.devices is {config.generate.devices}, but `pagedvid {command}` works on one device; leave it "
            "out, or make the videos with `pagedvid generate`"
        )
