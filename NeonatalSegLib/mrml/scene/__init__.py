"""Volumes, segmentations and tables of the scene."""
