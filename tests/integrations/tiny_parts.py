"""Tiny text encoders and VAEs with random weights, made and saved by the libraries themselves.

Imported inside tests' functions: making them loads transformers or diffusers.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

WORDS = ("a", "cat", "dog", "on", "the", "roof", "walks", "sits", "and", "&", "home")
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
NUM_IDS = 32


def write_tokenizer(folder: Path) -> Any:
    """Words become ids, an end token follows, as in T5; returns transformers' tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [(PAD, 0.0), (END, 0.0), (UNKNOWN, 0.0), *(("▁" + word, -1.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    fast.save_pretrained(folder)
    return fast


def write_encoder(folder: Path, kind: str, width: int) -> Any:
    """A T5 or UMT5 encoder of two layers; returns transformers' model."""
    import transformers

    name = {"t5": "T5", "umt5": "UMT5"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=NUM_IDS, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}EncoderModel")(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    model.save_pretrained(folder)
    return model


def wan_vae(**changed: Any) -> Any:
    """Wan 2.1's, 4 latent channels, 8 pixels a side for one latent."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    scale = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 1.5, 1.0, 0.5]}
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return AutoencoderKLWan(**{**sizes, **scale, **changed}).eval()


WAN22 = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
"""What Wan 2.2's VAE has of its own: residual, pixels in patches of 2 x 2, so 16 pixels a side for one latent."""
WAN22_5B = {
    **WAN22,
    "z_dim": 48,
    "base_dim": 4,
    "decoder_base_dim": 8,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "latents_mean": torch.linspace(-0.3, 0.5, 48).tolist(),
    "latents_std": torch.linspace(0.4, 1.7, 48).flip(0).tolist(),
}
"""As published with TI2V 5B, but narrow: its channels, and blocks that differ in width; 160 and 256 are its widths."""


def wan22_vae() -> Any:
    """Wan 2.2's, 4 latent channels."""
    return wan_vae(**WAN22)


def hunyuan_vae() -> Any:
    """HunyuanVideo-1.5's, 4 latent channels."""
    from diffusers import AutoencoderKLHunyuanVideo15

    torch.manual_seed(0)
    blocks = (32, 32, 32, 32, 32)
    return AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=blocks, layers_per_block=1).eval()


VAES = {"wan": wan_vae, "wan22": wan22_vae, "hunyuan": hunyuan_vae}


def by_hand(vae: Any, latents_FCRS: torch.Tensor) -> np.ndarray:
    """Frames uint8 [N, height, width, 3] as the pipelines of diffusers make them of a model's latents."""
    from diffusers.video_processor import VideoProcessor

    x = latents_FCRS.transpose(0, 1).unsqueeze(0)
    if hasattr(vae.config, "latents_mean"):  # pipeline_wan.py
        mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
        inverse = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
        x = x / inverse + mean
    else:  # pipeline_hunyuan_video1_5.py
        x = x / vae.config.scaling_factor
    with torch.no_grad():
        video = vae.decode(x, return_dict=False)[0]
    frames = VideoProcessor().postprocess_video(video, output_type="np")[0]  # [N, height, width, 3] in 0..1
    return (frames * 255).round().astype(np.uint8)


def watch_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Lets the hub's client believe that it may go online, fails every connection; returns what was asked for, but not
    of this machine: threads that Ray has left look for its programs."""
    import huggingface_hub.constants

    asked: list[object] = []

    def refuse(*arguments: object, **named: object) -> None:
        if "localhost" not in arguments:
            asked.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked
