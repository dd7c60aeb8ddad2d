"""What all tests share: virtual time that replays, and where the project lies."""

from __future__ import annotations
