"""`pagedvid decode`: videos from the latents that `pagedvid generate` wrote, by a VAE of diffusers.

For models whose VAE decodes whole videos, or whose frames are wanted elsewhere or later.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedvid.errors import ConfigError

if TYPE_CHECKING:
    from pagedvid.integrations.vae import VideoVae


def add_parser(subparsers: Any) -> None:
    """Adds `decode`."""
    parser = subparsers.add_parser("decode", help="videos from latents, by a VAE of diffusers", description=__doc__)
    parser.add_argument("latents", nargs="+", type=Path, help="latents files, or a folder with some")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the VAE in the layout of diffusers")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes <name>.mp4 beside every <name>.safetensors."""
    files = latents_files(args.latents)
    import torch

    from pagedvid.integrations.vae import VideoVae

    vae = VideoVae(args.vae, args.device, getattr(torch, args.dtype))
    for file in files:
        path, num_frames = decode_file(vae, file)
        print(f"{path}  {num_frames} frames")
    return 0


def latents_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and those of the folders named. Raises ConfigError when there is none."""
    files = [file for path in paths for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise ConfigError(
            f"no latents to decode: {', '.join(missing or map(str, paths))} "
            f"{'is no file' if missing else 'has no .safetensors files'}"
        )
    return files


def decode_file(vae: VideoVae, file: Path) -> tuple[Path, int]:
    """Decodes one file; returns the video's path and its number of frames. Raises ConfigError."""
    from pagedvid.output.latents import read_latents
    from pagedvid.output.video import VideoWriter

    latents_FCHW, latents_per_second = read_latents(file)
    frames = vae.decode(latents_FCHW)
    writer = VideoWriter(file.with_suffix(".mp4"), latents_per_second * vae.frames_per_latent, scale=1)
    try:
        writer.add(frames)
        writer.finish()
        writer.publish()
    finally:
        writer.discard()
    return writer.path, len(frames)
