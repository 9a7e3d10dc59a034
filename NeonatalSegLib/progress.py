"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with the stage in words and the fraction of the whole that is done, 0-1. What it raises goes through to the
# caller of the work: errors.Cancelled ends it.
Progress = Callable[[str, float], None]
