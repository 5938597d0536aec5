"""What tests/test_parallel.py starts twice: one of two processes that train together."""

import sys
from pathlib import Path

from tiny_training import Sines

from subjectgen.train.loop import Budget, Schedule, run

STEPS, SCHEDULE = 5, Schedule(rate=1e-2, warmup=1)

if __name__ == "__main__":
    run(Sines(), Path(sys.argv[1]), Budget(steps=STEPS), SCHEDULE)
