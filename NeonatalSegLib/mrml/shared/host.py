"""What the sections below the first one (Annotate, Fine-tune) have in common: how they are made and told of events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Host:
    """What a section gets from the module file: everything of Qt that it cannot make itself.

    Attributes:
        logic: the module's logic (``runner``, ``models``, ``getParameterNode``); ``logic.runner.engine()`` is the
            compute process of all sections, ``logic.runner.turn`` says which of them may use it now.
        panel: the first section's controller; ``panel.parameters`` are the scene's parameters, None between scenes.
        make_timer: a stopped timer of the module's pace, of the section's own.
        make_item: a cell of a table with this text.
        make_shortcut: (keys as text, what to call) gives a shortcut of the main window, disabled at first.
        is_active: True while a window of the application has the keyboard.
        confirm: asks yes or no with a text. choose_folder: asks for a folder with a title, "" for none.
        choose_file: asks for a file that is there with a title and a filter ("Models (*.zip)"), "" for none.
        read_setting: what is kept over restarts of Slicer under a name, "" for nothing. write_setting: keeps a text.
    """

    logic: Any
    panel: Any
    make_timer: Callable[[], Any]
    make_item: Callable[[str], Any]
    make_shortcut: Callable[[str, Callable[[], None]], Any]
    is_active: Callable[[], bool]
    confirm: Callable[[str], bool]
    choose_folder: Callable[[str], str]
    choose_file: Callable[[str, str], str]
    read_setting: Callable[[str], str]
    write_setting: Callable[[str, str], None]


class Section(Protocol):
    """A section's controller, made as ``Controller(ui, host)`` with the widgets of its .ui file by name."""

    def enter(self) -> None:
        """The user opens the module."""

    def exit(self) -> None:
        """The user goes to another module."""

    def follow_scene(self) -> None:
        """Another scene or other parameters are there (``host.panel.parameters``)."""

    def scene_closes(self) -> None:
        """The scene is about to lose its nodes."""

    def node_removed(self) -> None:
        """A node has left the scene."""

    def close(self) -> None:
        """The module is closed: stop everything and let go of the scene."""
