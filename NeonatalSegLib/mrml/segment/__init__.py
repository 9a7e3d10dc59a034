"""The section that segments."""
