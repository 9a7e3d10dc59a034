"""From a scan to its label map, and what is written beside it."""
