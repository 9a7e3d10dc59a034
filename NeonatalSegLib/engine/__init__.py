"""The compute process: one persistent worker behind a pipe, and the client that starts, cancels and restarts it.

>>> from NeonatalSegLib.engine import Client
>>> with Client() as client:                                                # doctest: +SKIP
...     result = client.segment(t1="t1.nii.gz", t2="t2.nii.gz").result()
...     print(result["volumes_ml"], result["label_map"])

Importing this package loads neither torch nor SimpleITK; the worker does, when its first operation is asked for.
"""

from NeonatalSegLib.engine.client import Client, EngineError, Request
from NeonatalSegLib.engine.protocol import Event

__all__ = ["Client", "EngineError", "Event", "Request"]
