"""Random changes to training patches, and images drawn from label maps."""
