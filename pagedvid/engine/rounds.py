"""One step's batch: the rounds of its jobs run in one forward, and what they bring is given out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pagedvid.engine.changes import Changes
from pagedvid.engine.counters import Counters
from pagedvid.engine.failures import described
from pagedvid.engine.forward import advance_chunks, committed_latents, finished_chunk, packed_forward
from pagedvid.engine.job import Job
from pagedvid.engine.planning import Planner
from pagedvid.engine.requests import EngineOutput
from pagedvid.engine.residency import Residency
from pagedvid.engine.roster import Roster
from pagedvid.errors import IntegrityError, PagedvidError, RankError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rounds:
    """Runs batches of jobs, one round of each job at a time."""

    planner: Planner
    roster: Roster
    residency: Residency
    changes: Changes
    counters: Counters

    def run(self, batch: Sequence[Job]) -> list[EngineOutput]:
        """Runs a batch. If it fails, its jobs are run one by one, so that only the culprit fails."""
        planner = self.planner
        try:
            for job in batch:
                job.begin_round(planner.model)
            stored = [committed_latents(job) for job in batch]
            predictions, seconds = packed_forward(planner.model, planner.cache, batch)
        except (IntegrityError, RankError):
            raise  # the bookkeeping itself is wrong, so no single video is at fault and none is safe
        except Exception as error:
            self._require_on_every_rank(error)
            if len(batch) == 1:
                return [self._fail(batch[0], error)]
            logger.warning("a step of %d videos failed (%s); running them one by one", len(batch), described(error))
        else:
            self.counters.forward_seconds += seconds
            return self._advance_all(batch, predictions, stored)
        # Outside `except`: inside it, the error would keep the failed forward's tensors alive while the others run.
        return [output for job in batch for output in self.run([job])]

    def _require_on_every_rank(self, error: Exception) -> None:
        """Raises RankError for an error that other ranks may not have met: they wait in this step's next exchange.

        What pagedvid checks is the same on all ranks, and what only one of them can find they tell each other.
        """
        num_ranks = self.planner.cache.num_ranks
        if num_ranks > 1 and not isinstance(error, PagedvidError):
            raise RankError(
                f"a step of {num_ranks} ranks failed on this one: {described(error)}. All of them must end and start "
                "again"
            ) from error

    def longer(self) -> list[Job]:
        """The videos that were extended when their last chunk had more frames than they needed."""
        return [job for job in self.roster.jobs.values() if job.has_unseen_frames]

    def give_out_rests(self) -> list[EngineOutput]:
        """The frames that `longer` videos have made and not given out."""
        return [output for job in self.longer() for output in self._rest(job)]

    def _rest(self, job: Job) -> list[EngineOutput]:
        try:
            rest = finished_chunk(self.planner.model, job, max(job.latents.chunks), self.planner.clock())
        except Exception as error:
            return [self._fail(job, error)]
        if job.is_over:
            self._end(job)
        return [rest]

    def _advance_all(
        self,
        batch: Sequence[Job],
        predictions: Sequence[Sequence[Tensor]],
        stored: Sequence[Sequence[tuple[int, Tensor]]],
    ) -> list[EngineOutput]:
        """Moves the jobs past the round that just ran; returns the chunks that became clean.

        An interrupt cancels the jobs and is raised again: what they stored is published, so the round cannot be
        repeated, and the chunks that became clean are lost.
        """
        try:
            return [
                output
                for job, prediction, latents in zip(batch, predictions, stored, strict=True)
                for output in self._advance(job, prediction, latents)
            ]
        except BaseException:
            for job in batch:
                if self.roster.jobs.get(job.request.id) is job:
                    self.residency.leave(job)
            raise

    def _advance(
        self, job: Job, predictions: Sequence[Tensor], stored: Sequence[tuple[int, Tensor]]
    ) -> list[EngineOutput]:
        model, cache = self.planner.model, self.planner.cache
        outputs: list[EngineOutput] = []
        try:
            advance_chunks(model, job, predictions)
            if job.round.drops:
                cache.drop(job.open_stream(), job.round.drops)
            if stored:
                job.note_stored(cache.spec.shape, stored)
            for chunk in job.round.finished:
                outputs.append(finished_chunk(model, job, chunk, self.planner.clock()))
                self.counters.num_chunks_done += 1
            for chunk in job.round.forgets:
                del job.latents.chunks[chunk]
            job.next_round()
        except Exception as error:
            return [*outputs, self._fail(job, error)]
        if job.is_at_boundary:
            outputs += self.changes.apply(job)
        if job.is_over:
            self._end(job)
        return outputs

    def _end(self, job: Job) -> None:
        self.counters.num_finished += 1
        if not job.request.keep:
            self.residency.leave(job)
        elif job.playout is not None:
            job.playout.excuse(self.planner.clock())

    def _fail(self, job: Job, error: Exception) -> EngineOutput:
        self.residency.leave(job)
        return self.roster.failure(job.request.id, error)
