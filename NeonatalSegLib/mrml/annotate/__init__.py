"""The section that annotates."""
