"""Training runs: settings, patches, the task, the loop."""
