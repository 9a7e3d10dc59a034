"""Methods that Qt or a timer calls: what fails in them is shown in the panel, not lost."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError


def slot(method: Callable[[Any], None]) -> Callable[[Any], None]:
    """For methods that Qt calls, of objects with a ``panel``. They take no arguments, so none are delivered."""

    @functools.wraps(method)
    def guarded(self: Any) -> None:
        try:
            method(self)
        except NeonatalSegError as error:
            self.panel.failed(str(error))
        except Exception as error:
            logging.exception("NeonatalSeg")
            self.panel.failed(f"Something unexpected went wrong ({error}). The details are in the error log.")

    del guarded.__wrapped__  # type: ignore[attr-defined]  # PythonQt counts the arguments of this function
    return guarded
