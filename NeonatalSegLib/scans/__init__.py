"""From image files to a prepared array: one newborn's T1 and T2 in physical space, and the way back."""
