"""SGLang's own LingBot-World on a CPU: its wheel, and what the wheel needs of a CUDA installation left empty.

SGLang asks for a CUDA 13 stack. Its causal LingBot-World, the denoising stage of that model, its plugins and its cache
are imported here as they are. Modules that their files import and do not run on a CPU are empty ones (`EMPTY`), and
packages whose `__init__` imports all of SGLang are entered without it (`ENTERED`).
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

RUNTIME = "sglang.multimodal_gen.runtime"
STAGES = f"{RUNTIME}.pipelines_core.stages"
LINGBOT = f"{STAGES}.model_specific_stages.lingbot_world"
EMPTY = (  # on a CPU nothing of these is run
    "dateutil",
    "IPython",
    "triton",
    "sglang.srt.configs",
    "sglang.srt.layers",
    "sglang.srt.utils.hf_transformers",
    f"{STAGES}.denoising",
)
ENTERED = ("sglang", f"{RUNTIME}.pipelines_core", STAGES, f"{STAGES}.model_specific_stages", LINGBOT)
SERVER = {
    "attention_backend": None,
    "attention_backend_config": None,
    "comfyui_mode": False,
    "disable_autocast": True,
    "enable_breakable_cuda_graph": False,
    "enable_cfg_parallel": False,
    "enable_layerwise_nvtx_marker": False,
    "enable_torch_compile": False,
    "kv_gather_degree": 1,
    "sp_split_auto": False,
}
"""What these modules read of the server's arguments."""
WHEEL = Path(str(importlib.util.find_spec("sglang").origin)).parent


class Empty(ModuleType):
    """Has any class and any decorator that one asks for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper() or name in ("constexpr", "dtype"):
            return type(name, (), {"__init__": lambda self, *args, **kwargs: None})
        return lambda *args, **kwargs: args[0] if args and callable(args[0]) else lambda function: function


class EmptyModules(MetaPathFinder, Loader):
    """Finds the modules in `EMPTY`, and those inside of them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        is_empty = any(f"{name}.".startswith(f"{empty}.") for empty in EMPTY)
        return ModuleSpec(name, self, is_package=True) if is_empty else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def one_process() -> Iterator[None]:
    """Makes SGLang's video engine importable, and its process groups this process, as long as the block lasts."""
    torch.compile(lambda x: x)  # reads everything that looks for Triton before it is empty
    importlib.import_module("torch._inductor.compile_fx")
    sys.meta_path.insert(0, EmptyModules())
    for name in ENTERED:
        sys.modules[name] = entered(name)
    module("server_args.server_args").set_global_server_args(SimpleNamespace(**SERVER))
    module("layers.layernorm").fuse_scale_shift_kernel = scale_and_shift  # the wheel has no kernel for CPUs
    groups = module("distributed")
    groups.maybe_init_distributed_environment_and_model_parallel(
        tp_size=1, sp_size=1, distributed_init_method=f"tcp://127.0.0.1:{free_port()}"
    )
    with torch._dynamo.config.patch(disable=True):
        yield
    groups.cleanup_dist_env_and_memory()


def entered(name: str) -> ModuleType:
    """A package of the wheel without what its `__init__` does."""
    package = ModuleType(name)
    package.__path__ = [str(WHEEL.joinpath(*name.split(".")[1:]))]
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    return package


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def scale_and_shift(x_BLC: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (1 + scale) + shift, both [1], [B, 1, C], or [B, frames, 1, C]."""
    if scale.dim() < 4:
        return x_BLC * (1 + scale) + shift
    return (x_BLC.unflatten(1, (scale.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)


def module(name: str) -> Any:
    """A module of SGLang's runtime."""
    return importlib.import_module(f"{RUNTIME}.{name}")


def lingbot_stages() -> Any:
    """The module of the denoising stage of LingBot-World."""
    return importlib.import_module(f"{LINGBOT}.lingbot_world_causal_denoising")
