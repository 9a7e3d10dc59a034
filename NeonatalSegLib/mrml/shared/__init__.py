"""What all sections of the panel use."""
