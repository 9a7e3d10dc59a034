"""How well a label map agrees with the truth."""
