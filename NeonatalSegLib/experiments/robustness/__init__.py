"""The robustness matrix."""
