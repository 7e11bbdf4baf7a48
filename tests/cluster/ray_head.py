"""A small Ray on this machine for tests: `ray_head.py NUM_CPUS` prints its address, and ends when its standard input
does."""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=int(sys.argv[1]),
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
