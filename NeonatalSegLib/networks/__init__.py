"""The networks, their losses, and how they run over a whole volume."""
