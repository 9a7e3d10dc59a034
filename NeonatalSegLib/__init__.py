"""NeonatalSegLib: everything of NeonatalSeg that computes, usable from a Python prompt without Slicer.

Import the room that you need (``from NeonatalSegLib.scan import load_scan``); importing the package itself loads
nothing heavy. Research use only, not for diagnosis.
"""

__version__ = "0.1.0"
