"""The rooms that need MRML: volume nodes, segmentation nodes, tables. They run in Slicer and on the slicer-core wheel.

No Qt in here: the widget and the headless script are both clients of these functions.
"""
