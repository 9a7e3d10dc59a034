"""The HTML pages that people look at: one of each scan, one of a study. Each is one file that works offline."""
