"""From annotated slices to a better model."""
