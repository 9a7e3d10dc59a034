"""A simulated annotator: what a budget of slices brings."""
