"""Many steps of the machine that writes, breaks and reads a journal at random."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit"))

from journal_readers import JournalReaders

STEPS = 50


def main() -> None:
    """Run the steps and say what they met; a failing run is shrunk and printed."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    begun = time.monotonic()
    run_state_machine_as_test(
        JournalReaders,
        settings=settings(
            max_examples=max(1, steps // STEPS),
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=False,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{steps} steps in {time.monotonic() - begun:.0f} s, in which there was")
    for what, count in JournalReaders.met.most_common():
        print(f"  {count:9} x {what}")


if __name__ == "__main__":
    main()
