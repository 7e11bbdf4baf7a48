"""vLLM-Omni's runner of autoregressive video models, with pages for its pool.

    diffusion_model_runner_cls: pagedvid.integrations.vllm_omni.runner.PagedModelRunner      # the changed line

Sessions, ticks, eviction of the least recently used session and closing after a failure are vLLM-Omni's own. What
differs: a session's history is in pages, quantized and corrected as the stage's `model_config` says (settings.py); as
many sessions are admitted as their peaks fit, exactly; pipelines that can denoise several sessions in one forward get
them together; and a session can be forked.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from pagedvid.errors import CapacityError, ConfigError, StateError
from pagedvid.integrations.vllm_omni.library import require_vllm_omni
from pagedvid.integrations.vllm_omni.session import PagedSession
from pagedvid.integrations.vllm_omni.session_store import SessionStore
from pagedvid.integrations.vllm_omni.settings import PagedSettings

require_vllm_omni()

from vllm_omni.diffusion.models.interface import supports_step_execution  # noqa: E402  # its version comes first
from vllm_omni.diffusion.worker.diffusion_model_runner import DiffusionModelRunner  # noqa: E402
from vllm_omni.experimental.ar_diffusion.runner import ARDiffusionModelRunner  # noqa: E402
from vllm_omni.platforms import current_omni_platform  # noqa: E402

FORK_OF = "pagedvid_fork_of"
"""Entry of a request's `extra_args`: its session begins as a fork of the one that is named here."""


class PagedModelRunner(ARDiffusionModelRunner):  # type: ignore[misc]  # vllm_omni is used through Any
    """An `ARDiffusionModelRunner` whose `kv_cache` is a `SessionStore`."""

    def __init__(self, vllm_config: object, od_config: Any, device: torch.device) -> None:
        if not od_config.enforce_eager:
            raise ConfigError("the pages that a layer reads change from block to block: set enforce_eager to True")
        super().__init__(vllm_config, od_config, device)
        self.paged_settings = PagedSettings.read(od_config.model_config)

    # ------------------------------------------------------------------ sessions

    def _preallocate_kv_cache(self, *, available_bytes: int | None = None) -> None:
        self._require_batches()
        pipeline = self._require_capability(self.pipeline)
        free_bytes = self._available_memory_bytes() if available_bytes is None else available_bytes
        self.kv_cache = SessionStore.for_pipeline(
            pipeline, self.ar_diffusion_kv_config, self.paged_settings, self.od_config.dtype, self.device, free_bytes
        )
        self._ar_diffusion_capability = pipeline
        self._ar_diffusion_kv_cache_spec = pipeline.ar_diffusion_kv_cache_spec()
        self._session_capacity = self.kv_cache.capacity
        self._require_batch_fits()

    def _require_batches(self) -> None:
        """Raises ConfigError for a way of execution in which sessions cannot be bound to forwards."""
        if self.od_config.step_execution and not supports_step_execution(self.pipeline):
            raise ConfigError(f"{type(self.pipeline).__name__} has no step execution: set step_execution to False")
        if self.od_config.max_num_seqs <= 1:
            return
        if not (self.od_config.step_execution and getattr(self.pipeline, "supports_session_batch", False)):
            raise ConfigError(
                f"max_num_seqs is {self.od_config.max_num_seqs}; several sessions share a forward only with "
                "step_execution, in a pipeline that supports_session_batch such as "
                "pagedvid.integrations.vllm_omni.lingbot.PagedLingBotPipeline without lingbot_reuse_last_step_kv; "
                "set it to 1"
            )

    def _require_batch_fits(self) -> None:
        wanted = self.od_config.max_num_seqs
        if wanted > self._session_capacity:
            raise CapacityError(
                f"max_num_seqs is {wanted}, but {self._session_capacity} sessions fit or were asked for: lower it, or "
                "raise sessions and memory in the settings of pagedvid"
            )

    def _new_session_state(self, session_id: str) -> PagedSession:
        if self.kv_cache is None:
            raise StateError("a session was opened before a model was loaded")
        return self.kv_cache.open(session_id)

    def execute_model(self, req: Any, kv_prefetch_job: Any = None) -> Any:
        """As in vLLM-Omni; a request that names `FORK_OF` first makes its session. Raises as `fork_session`."""
        source = (req.sampling_params.extra_args or {}).get(FORK_OF)
        if source is not None:
            session_id, *_ = self._request_session(req)
            self.fork_session(source, session_id)
        return super().execute_model(req, kv_prefetch_job=kv_prefetch_job)

    def fork_session(self, session_id: str, fork_id: str) -> None:
        """Makes session `fork_id`, which continues from the blocks and texts of `session_id`; no byte is copied.

        Raises StateError for sessions that are not there, or are there already, ConfigError for a pipeline without
        `fork_ar_diffusion_session(session_id, fork_id)`, and CapacityError, after which nothing has changed.
        """
        source = self._sessions.get(session_id)
        if source is None or fork_id in self._sessions:
            raise StateError(f"session {session_id!r} must be open, and {fork_id!r} must not: fork to a new name")
        copy_model_state = getattr(self.pipeline, "fork_ar_diffusion_session", None)
        if copy_model_state is None:
            raise ConfigError(
                f"{type(self.pipeline).__name__} has state of its own for every session and no method "
                "fork_ar_diffusion_session(session_id, fork_id) that copies it"
            )
        if len(self._sessions) >= self._session_capacity:
            raise CapacityError(f"all {self._session_capacity} sessions are in use; close one before a fork")
        fork = source.fork(fork_id)
        try:
            copy_model_state(session_id, fork_id)
        except BaseException:
            fork.close()
            raise
        self._sessions[fork_id] = fork

    # ------------------------------------------------------------------ several sessions in one forward

    def execute_stepwise(self, scheduler_output: Any) -> Any:
        """One denoise step of every scheduled session, in one forward. With one session as in vLLM-Omni."""
        request_ids = list(scheduler_output.scheduled_request_ids)
        if len(request_ids) < 2:
            return super().execute_stepwise(scheduler_output)
        self._release_scheduler_finished_sessions(scheduler_output)
        for request_id in request_ids:
            if request_id in self._sessions:
                self._sessions.move_to_end(request_id)  # a session that is new must not push out one of the batch
        try:
            outputs = self._denoise_together(request_ids, scheduler_output)
        except Exception:
            for request_id in request_ids:
                self._fail_closed_stepwise(request_id)
            raise
        for request_id in request_ids:
            made = outputs.get_request_output(request_id)
            if made is None or made.finished or (made.result is not None and made.result.error):
                self.close_session(request_id)
        return outputs

    def _denoise_together(self, request_ids: Sequence[str], scheduler_output: Any) -> Any:
        with ExitStack() as bound:
            for request_id in request_ids:
                bound.enter_context(self._bound_ar_session(request_id, description="stepwise", synchronize=False))
            outputs = DiffusionModelRunner.execute_stepwise(self, scheduler_output)
            if any(made.result is not None for made in outputs.runner_outputs):
                current_omni_platform.synchronize()  # where a block ends, errors of the device come to light
            return outputs
