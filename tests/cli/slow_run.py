"""The command line with a fake engine whose steps take a while, so that tests can kill it.

python slow_run.py SECONDS_PER_STEP MAX_FILE_BYTES ARGUMENTS...        (MAX_FILE_BYTES 0 = no limit)
"""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pagedvid.cli import generate, main
from tests.cli.fake_engine import FakeEngine

if __name__ == "__main__":
    step_seconds, max_file_bytes = float(sys.argv[1]), int(sys.argv[2])
    if max_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    generate.create_engine = lambda config, prompts: FakeEngine(step_seconds)
    sys.argv[1:] = sys.argv[3:]
    main.command()
