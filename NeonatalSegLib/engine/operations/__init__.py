"""What the compute process can do, one module per operation."""
