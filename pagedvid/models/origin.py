"""What checkpoints of a model's videos have to agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pagedvid.config.loras import Lora
from pagedvid.engine.checkpoint_file import Origin
from pagedvid.engine.protocol import VideoModel
from pagedvid.files.fingerprint import fingerprint
from pagedvid.files.paths import is_folder
from pagedvid.models.build import RunSpec
from pagedvid.models.common.checkpoint_files import files_of_part, path_or_none
from pagedvid.models.common.lora import files_of_lora
from pagedvid.models.registry import model_weights


def origin_of(run: RunSpec, model: VideoModel) -> Origin:
    """The origin of checkpoints of an engine that `build_engine` makes of `run`, with the model that it loads.

    Reads parts of the model's files, once per process. Raises ConfigError when one cannot be read.
    """
    config = run.config.model
    return Origin(
        model=model.name,
        geometry=model.geometry,
        cache=run.cache,
        window=replace(run.window, positions=model.positions),
        num_denoise_steps=run.config.engine.denoise_steps,
        settings={
            "dtype": config.dtype,
            "weights_dtype": config.weights_dtype,
            "height": config.height,
            "width": config.width,
            "ar_step": config.ar_step,
            "guidance_scale": str(config.guidance_scale),
            "shift": str(config.shift),
            "addnoise_condition": config.addnoise_condition,
            "special_tokens": str(config.written_field("special_tokens")),
            "null_special_tokens": config.null_special_tokens,
            "ema": config.ema,
            "lora_scales": " ".join(repr(lora.scale) for lora in config.loras),
        },
        files=file_fingerprints(run),
    )


def file_fingerprints(run: RunSpec) -> dict[str, str | None]:
    """Fingerprints of the model's files by what they are for; None: there is none.

    Reads parts of them, once per process. Raises ConfigError when one cannot be read.
    """
    config = run.config.model
    weights = model_weights(config.name, path_or_none(config.weights))
    is_pipeline = weights is not None and is_folder(weights / "transformer")
    pipeline = weights if is_pipeline else None
    return {
        "weights": _fingerprint(weights, "transformer"),
        "text_encoder": _fingerprint(path_or_none(config.text_encoder) or pipeline, "text_encoder"),
        "vae": _fingerprint(path_or_none(config.vae) or pipeline, "vae"),
        "tables": None if run.tables is None else fingerprint([run.tables]),
        "loras": _fingerprint_of_loras(config.loras),
    }


def _fingerprint(path: Path | None, part: str) -> str | None:
    """Of a part of a model, which is at `path` itself or, in a pipeline of diffusers, in a folder of its name there."""
    if path is None:
        return None
    return fingerprint(files_of_part(path / part if is_folder(path / part) else path))


def _fingerprint_of_loras(loras: Sequence[Lora]) -> str | None:
    """Of all their files, in order."""
    files = [file for lora in loras for file in files_of_lora(Path(lora.path))]
    return fingerprint(files) if files else None
