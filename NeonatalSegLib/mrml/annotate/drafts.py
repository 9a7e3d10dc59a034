"""What was changed in a slice that is left unfinished: kept on disk, or not left without a question."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from slicer.i18n import tr as _

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.mrml.annotate.slice_workspace import SliceWorkspace
from NeonatalSegLib.panel.annotate_state import AnnotateState

LOSE = "What was changed in this slice cannot be kept: {why}\n\nLeave the slice and lose the change?"
EVERY_S = 30.0  # what was changed is on disk at least so often


class Drafts:
    """Keeps the slice that is shown, as it is now.

    Args:
        confirm: asks yes or no with a text.

    Attributes:
        why_not: why the last one could not be kept, in one sentence.
        kept_at: when it was last tried, seconds of ``time.monotonic``.
    """

    def __init__(self, panel: AnnotateState, desk: SliceWorkspace, confirm: Callable[[str], bool]) -> None:
        self.panel, self.desk, self.confirm = panel, desk, confirm
        self.why_not, self.kept_at = "", 0.0

    def keep(self) -> bool:
        """Keep what was changed; False, and told, where that fails, whatever the reason: every way out leads here."""
        self.kept_at = time.monotonic()
        shown, item = self.desk.shown, self.panel.item
        if shown is None or item is None or not self.panel.editable or not shown.shows(item.slice):
            return True
        try:
            self.panel.keep_draft(shown.read())
        except NeonatalSegError as error:
            self.why_not = str(error)
        except Exception as error:
            logging.exception("NeonatalSeg")
            self.why_not = f"Something unexpected went wrong ({error}). The details are in the error log."
        else:
            return True
        self.panel.failed(self.why_not)
        return False

    def keep_now_and_then(self) -> None:
        """From a timer: an application that ends without warning costs half a minute of work."""
        if time.monotonic() - self.kept_at > EVERY_S:
            self.keep()

    def may_leave(self) -> bool:
        """Keep what was changed; where that fails the user decides whether it may be lost."""
        return self.keep() or bool(self.confirm(_(LOSE).format(why=self.why_not)))
