"""The command neonatalseg."""
