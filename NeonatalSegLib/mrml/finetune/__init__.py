"""The section that fine-tunes."""
