"""The keys of the Annotate section: which key calls what, and when it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from NeonatalSegLib.panel.annotate_view import EDITING, KEYS, AnnotateView


class Keys:
    """Shortcuts of the main window that work while the section is open, and only where their buttons do.

    Args:
        make_shortcut: (keys as text, what to call) gives a shortcut, disabled at first. calls: what each key calls.
    """

    def __init__(
        self, make_shortcut: Callable[[str, Callable[[], None]], Any], calls: Mapping[str, Callable[[], None]]
    ) -> None:
        self.shortcuts = {name: make_shortcut(KEYS[name], call) for name, call in calls.items()}

    def follow(self, view: AnnotateView, in_use: bool) -> None:
        """Enable what can be used now; ``in_use``: the module and the section are open."""
        for name, shortcut in self.shortcuts.items():
            if name in view.buttons:
                usable = view.buttons[name].enabled
            else:
                usable = view.edit.enabled if name in EDITING else view.edit.visible
            shortcut.setEnabled(bool(in_use and usable))

    def close(self) -> None:
        """Take them from the main window, or a reloaded module would leave them there."""
        for shortcut in self.shortcuts.values():
            shortcut.setEnabled(False)
            shortcut.setParent(None)
            shortcut.deleteLater()
