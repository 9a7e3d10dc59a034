"""A label budget: which slices to annotate, and the study in which they are annotated."""
