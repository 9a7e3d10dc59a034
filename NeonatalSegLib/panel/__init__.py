"""What the panel shows and allows, without Qt."""
