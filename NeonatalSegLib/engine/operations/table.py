"""What the worker can do: a table of operations. A new one is a function in this room and a line in ``OPERATIONS``.

An operation takes the job (its fields, its folder, its progress) and the warm state (models already loaded), returns
the fields of its result, and raises NeonatalSegError for what a person can mend. Heavy imports stay inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from NeonatalSegLib.engine.operations import finetuning, planning
from NeonatalSegLib.engine.operations.hello import hello
from NeonatalSegLib.engine.operations.job import Operation
from NeonatalSegLib.engine.operations.segmenting import segment

if TYPE_CHECKING:
    pass

OPERATIONS: dict[str, Operation] = {
    "hello": hello,
    "segment": segment,
    "plan": planning.plan,
    "strategies": finetuning.strategies,
    "finetune": finetuning.finetune,
}
