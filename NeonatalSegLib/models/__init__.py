"""Model bundles: reading, writing, the store of the user's own versions."""
