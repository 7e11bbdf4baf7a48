"""`pagedvid decode`: decodes latents that `pagedvid generate` wrote into videos, with a VAE of diffusers.

For models whose VAE decodes whole videos, and for frames that are needed later or on another machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedvid.cli.cores import choose_wait_policy
from pagedvid.cli.messages import reason
from pagedvid.cli.options import by_rule, path_flag
from pagedvid.cli.terminal import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_SUCCESS
from pagedvid.config.sections import DEVICE
from pagedvid.errors import ConfigError

if TYPE_CHECKING:
    from pagedvid.integrations.vae import VideoVae


def add_parser(subparsers: Any) -> None:
    """Adds `decode`."""
    parser = subparsers.add_parser("decode", help="decode latents into videos", description=__doc__)
    parser.add_argument("latents", nargs="+", type=path_flag, help="files of latents, or folders of such files")
    parser.add_argument("--vae", type=path_flag, required=True, help="folder of the VAE in the layout of diffusers")
    parser.add_argument("--device", type=by_rule(DEVICE), default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes <name>.mp4 next to every <name>.safetensors. A file that fails is named, and the others are decoded.

    Returns the exit code: 2 when every file was refused as input, 1 when some failed. Raises ConfigError when there is
    nothing to decode, or nothing to write videos with.
    """
    files = latents_files(args.latents)
    choose_wait_policy()
    import torch

    from pagedvid.integrations.vae import VideoVae
    from pagedvid.output.mp4 import av_library

    av_library()  # now, not after the model has been loaded
    vae = VideoVae(args.vae, args.device, getattr(torch, args.dtype))
    failures: list[Exception] = []
    for file in files:
        try:
            path, num_frames = decode_file(vae, file)
        except Exception as error:
            failures.append(error)
            print(f"failed  {file}  {reason(error)}", file=sys.stderr)
        else:
            print(f"{path}  {num_frames} frames")
    if not failures:
        return EXIT_SUCCESS
    is_bad_input = len(failures) == len(files) and all(isinstance(error, ConfigError) for error in failures)
    return EXIT_BAD_INPUT if is_bad_input else EXIT_FAILED


def latents_files(paths: Sequence[Path]) -> list[Path]:
    """The given files and those in the given folders, each once.

    Raises ConfigError when there are none, and when two would become the same video.
    """
    try:
        named = [file for path in paths for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
        missing = [str(file) for file in named if not file.is_file()]
    except OSError as error:
        raise ConfigError(f"{', '.join(map(str, paths))} cannot be read: {error.strerror}") from None
    if missing or not named:
        raise ConfigError(
            f"no latents to decode: {', '.join(missing or map(str, paths))} "
            f"{'is not a file' if missing else 'has no .safetensors files'}"
        )
    files = list(dict.fromkeys(named))
    _refuse_collisions(files)
    return files


def _refuse_collisions(files: Sequence[Path]) -> None:
    sources: dict[Path, Path] = {}
    for file in files:
        video = _video_path(file)
        first = sources.setdefault(video, file)
        if video == file:
            raise ConfigError(f"the video of {file} would replace the latents; rename them to end in .safetensors")
        if first != file:
            raise ConfigError(f"{first} and {file} would both become {video}; rename one of them")


def decode_file(vae: VideoVae, file: Path) -> tuple[Path, int]:
    """Decodes one file; returns the video's path and its number of frames.

    Raises ConfigError for a file that does not contain latents of this VAE, and one of `write_errors()`.
    """
    from pagedvid.output.latents import read_latents
    from pagedvid.output.mp4 import VideoWriter

    latents_FCHW, latents_per_second = read_latents(file)
    writer = VideoWriter(_video_path(file), latents_per_second * vae.frames_per_latent, scale=1)
    try:
        writer.add(vae.decode(latents_FCHW))
        writer.finish()
        writer.publish()
    finally:
        writer.discard()
    return writer.path, writer.num_frames


def _video_path(file: Path) -> Path:
    return file.with_suffix(".mp4")
