"""Catching up to live without a gap or a repeat, whatever happens to the journal meanwhile.

`scripts/readers` runs many more steps of the same machine.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from journal_readers import JournalReaders

TestJournalReaders = JournalReaders.TestCase
TestJournalReaders.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
