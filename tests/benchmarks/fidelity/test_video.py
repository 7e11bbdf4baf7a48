"""The part "video" on an untrained model."""

from __future__ import annotations

from pathlib import Path

from fidelity.video import Bench, Job, measure_jobs
from lib.caches import Case
from lib.lab import Lab
from lib.quality import draw_tasks
from pagedvid.models.demo.weights import load_demo


def test_processes_only_share_the_work(weights: Path) -> None:
    tasks = draw_tasks(2, 0)
    lab = Lab(load_demo(weights), [task.request for task in tasks], 24, 1, weights)
    bench = Bench.of(lab, tasks)
    jobs = [Job(Case("int2"), is_forced=True), Job(Case("RTN2 g64", "variance"))]
    assert measure_jobs(bench, jobs, 1) == measure_jobs(bench, jobs, 2)
