"""Which videos of two folders belong together, and what the folders' manifests say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pagedvid.errors import ConfigError
from pagedvid.output.given_files import DIGEST, START
from pagedvid.output.manifest import ManifestEntry, read_manifest
from pagedvid.output.mp4 import VideoShape, video_shape, write_errors
from pagedvid.output.records import MANIFEST_NAME
from pagedvid.quality.metrics import SSIM_WINDOW
from pagedvid.shown import named


@dataclass(frozen=True)
class Pair:
    """Two videos of the same size and length, the reference first."""

    name: str
    a: Path
    b: Path
    shape: VideoShape
    entry_a: ManifestEntry | None
    """What the manifest next to the video says of it; None: nothing."""
    entry_b: ManifestEntry | None

    def differences(self) -> list[str]:
        """How the two requests differ, which makes them different videos whatever the cache did: "seed: 0 -> 1"."""
        if self.entry_a is None or self.entry_b is None:
            return []
        before, now = _asked(self.entry_a), _asked(self.entry_b)
        return [
            f"{what}: {before.get(what)!r} -> {now.get(what)!r}"
            for what in sorted(before | now)
            if before.get(what) != now.get(what)
        ]


@dataclass(frozen=True)
class Pairs:
    """What can be compared, and what cannot: the reason by name."""

    pairs: list[Pair]
    left_out: dict[str, str]


def _asked(entry: ManifestEntry) -> dict[str, object]:
    """What decides a video; of a given image or video its content, and not its path."""
    given = {name: it for name, it in entry.inputs.items() if name in (DIGEST, START)}
    return {"prompt": entry.prompt, "later_prompts": entry.later_prompts, "seed": entry.seed, **given}


def find_pairs(a: Path, b: Path) -> Pairs:
    """The videos (*.mp4) of two folders by name, or two single videos. `a` is the reference.

    Raises ConfigError when there is no video, when a manifest is damaged, and without PyAV.
    """
    if a.is_file() and b.is_file():
        files = {a.name: (a, b)}
    elif a.is_dir() and b.is_dir():
        in_a, in_b = _videos(a), _videos(b)
        files = {name: (a / name, b / name) for name in sorted(in_a | in_b)}
    else:
        raise ConfigError(f"{named(a)} and {named(b)} must be two folders of videos, or two videos that exist")
    manifests = {folder: _manifest(folder) for folder in {path.parent for both in files.values() for path in both}}
    pairs, left_out = [], {}
    for name, (first, second) in files.items():
        try:
            shape = _common_shape(first, second)
        except ConfigError as error:
            left_out[name] = str(error)
        else:
            entries = (manifests[path.parent].get(path.stem) for path in (first, second))
            pairs.append(Pair(Path(name).stem, first, second, shape, *entries))
    return Pairs(pairs, left_out)


def _videos(folder: Path) -> set[str]:
    names = {path.name for path in folder.glob("*.mp4") if not path.name.startswith(".")}
    if not names:
        latents = any(folder.glob("*.safetensors"))
        hint = "decode its latents with `pagedvid decode` first" if latents else "give a folder that has some"
        raise ConfigError(f"{named(folder)} has no .mp4 files; {hint}")
    return names


def _manifest(folder: Path) -> Mapping[str, ManifestEntry]:
    path = folder / MANIFEST_NAME
    return read_manifest(path) if path.is_file() else {}


def _common_shape(a: Path, b: Path) -> VideoShape:
    """Raises ConfigError for a file that is missing or no video, for different shapes, and for too small frames."""
    first, second = _shape(a), _shape(b)
    if first.num_frames != second.num_frames:
        raise ConfigError(f"{first.num_frames} frames in the reference, {second.num_frames} in the other")
    if first != second:
        raise ConfigError(f"frames of {first.width} x {first.height} and {second.width} x {second.height} pixels")
    if min(first.width, first.height) < SSIM_WINDOW or first.num_frames == 0:
        raise ConfigError(
            f"{first.num_frames} frames of {first.width} x {first.height} pixels; there must be at least one, and "
            f"{SSIM_WINDOW} x {SSIM_WINDOW}"
        )
    return first


def _shape(path: Path) -> VideoShape:
    try:
        return video_shape(path)
    except FileNotFoundError:
        raise ConfigError(f"there is no {named(path)}") from None
    except write_errors() as error:
        raise ConfigError(f"{named(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None
