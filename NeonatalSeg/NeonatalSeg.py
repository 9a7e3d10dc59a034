"""NeonatalSeg in Slicer: the module file. What it does lives in NeonatalSegLib; here the parts are tied to widgets."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

# Installed, NeonatalSegLib lies beside this file; in a source checkout it lies one level up.
for _folder in Path(__file__).resolve().parents[:2]:
    if (_folder / "NeonatalSegLib" / "__init__.py").is_file():
        if str(_folder) not in sys.path:
            sys.path.insert(0, str(_folder))
        break

from NeonatalSegLib.mrml.scene import results, sample, segments  # noqa: E402
from NeonatalSegLib.mrml.scene.volumes import volume_from_image  # noqa: E402
from NeonatalSegLib.mrml.segment.controller import PanelController  # noqa: E402
from NeonatalSegLib.mrml.segment.runner import SegmentationLogic  # noqa: E402
from NeonatalSegLib.mrml.shared import choices, drawing  # noqa: E402
from NeonatalSegLib.mrml.shared.compute import start_engine  # noqa: E402
from NeonatalSegLib.mrml.shared.host import Host, Section  # noqa: E402
from NeonatalSegLib.mrml.shared.parameters import NeonatalSegParameterNode  # noqa: E402
from NeonatalSegLib.panel.signals import Signal  # noqa: E402

POLL_MS = 80
STRETCHED = {"volumesTable": 0, "scoresTable": 0, "slicesTable": 3}  # the column that takes what is left
# The sections below the first: the .ui file, and the class in NeonatalSegLib.mrml that brings it to life.
SECTIONS = {
    "Annotate": ("annotate.controller", "AnnotateController"),
    "FineTune": ("finetune.controller", "FineTuneController"),
}


class NeonatalSeg(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("NeonatalSeg")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The NeonatalSeg contributors"]
        parent.helpText = _(
            "Segments the brain of a newborn, from a T1, a T2 or both, into eight tissues with their volumes. Choose "
            "the scan, click Segment, correct the result in the Segment Editor, export it. Research use only, not for "
            "diagnosis."
        )
        parent.acknowledgementText = _(
            "The default model was trained on the ALBERTs: Copyright Imperial College of Science, Technology and "
            "Medicine and Ioannis S. Gousias 2013. All rights reserved. Gousias et al., NeuroImage 2012 and PLoS ONE "
            "2013. Networks and transforms: MONAI."
        )
        slicer.app.connect("startupCompleted()", register_sample_data)


def register_sample_data() -> None:
    """Put the synthetic newborn into Slicer's Sample Data; it is drawn when asked for."""
    import SampleData

    icon = Path(__file__).resolve().parent / "Resources" / "Icons" / "NeonatalSeg.png"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="NeonatalSeg",
        sampleName=sample.NAME,
        uris="neonatalseg:phantom",  # never opened: the function below makes the volumes
        fileNames="phantom.nrrd",
        nodeNames=sample.NAME,
        customDownloader=sample.load_sample,
        thumbnailFileName=str(icon),
    )


class NeonatalSegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel's life: made, opened, left, reloaded, closed. What it does is the controller's business."""

    def __init__(self, parent: Any = None) -> None:
        # Before the base class: without a parent its constructor calls setup().
        VTKObservationMixin.__init__(self)
        self.makeEngine: Callable[[], Any] = start_engine
        self._entered = False
        self.sections: dict[str, Section] = {}
        self._scene_widgets: list[Any] = []
        self._fitter = _HeightFitter()
        self._fitted: list[Any] = []
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        """Load the .ui file and tie everything together; nothing is started or installed."""
        ScriptedLoadableModuleWidget.setup(self)
        self.ui = self._load_ui("NeonatalSeg")
        if hasattr(slicer.modules, "terminologies"):
            segments.load_terminology(slicer.modules.terminologies.logic())
        self.timer = _timer()
        self.logic = NeonatalSegLogic(engine=self.makeEngine)
        self.controller = PanelController(
            self.ui, self.logic, self.timer, _cell, _confirm, _choose_folder, _open_segment_editor
        )
        asks = (_confirm, _choose_folder, _choose_file, _read_setting, _write_setting)
        host = Host(self.logic, self.controller, _timer, _cell, self._shortcut, _active, *asks)
        for name, (module, controller) in SECTIONS.items():
            if Path(self.resourcePath(f"UI/{name}.ui")).is_file():
                made = getattr(importlib.import_module(f"NeonatalSegLib.mrml.{module}"), controller)
                self.sections[name] = made(self._load_ui(name), host)
        self.layout.addWidget(self.ui.researchLabel)  # below everything
        self.layout.addStretch(1)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)

    def cleanup(self) -> None:
        """The application closes or the module is reloaded."""
        self.removeObservers()
        for root in self._fitted:
            root.removeEventFilter(self._fitter)
        self._fitted = []
        closing = [section.close for section in self.sections.values()]
        closing += [self.controller.close, *(lambda w=widget: w.setMRMLScene(None) for widget in self._scene_widgets)]
        for close in closing:
            try:  # one that fails must not keep the others from ending: a process, a scene that is still held
                close()
            except Exception:
                logging.exception("NeonatalSeg")

    def onReload(self) -> None:
        """Developers reload the library with the module; where the module is open, the new panel is entered as well."""
        entered = self._entered
        for name in [name for name in sys.modules if name.split(".")[0] == "NeonatalSegLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)
        made = getattr(slicer.modules, "NeonatalSegWidget", None)
        if entered and made is not None and made is not self:
            made.enter()

    def enter(self) -> None:
        """The user opens the module: ask the compute process what it can do, if it can be started at all."""
        self._entered = True
        self.controller.enter()
        for section in self.sections.values():
            section.follow_scene()
            section.enter()

    def exit(self) -> None:
        """The user goes to another module: what runs goes on."""
        self._entered = False
        self.controller.exit()
        for section in self.sections.values():
            section.exit()

    def onSceneStartClose(self, caller: Any = None, event: Any = None) -> None:
        """Stop before the nodes go."""
        for section in self.sections.values():
            section.scene_closes()
        self.controller.scene_closes()

    def onSceneEndClose(self, caller: Any = None, event: Any = None) -> None:
        """A new scene: follow its parameter node if the module is open."""
        if self._entered:
            self._follow_scene()

    def onSceneEndImport(self, caller: Any = None, event: Any = None) -> None:
        """A scene was loaded, perhaps with our parameters and a result."""
        if self._entered or self.controller.parameters is not None:
            # What the parameters refer to has come after them: only a word of the node has them read anew.
            self.logic.getParameterNode().parameterNode.Modified()
            self._follow_scene()
            self.controller.on_parameters_changed()

    def onNodeRemoved(self, caller: Any = None, event: Any = None) -> None:
        """Perhaps it was the scan that is being segmented, or annotated."""
        if self.controller.parameters is not None:
            self.controller.parameters.parameterNode.Modified()  # or its parameters would go on naming a node that left
        self.controller.node_removed()
        for section in self.sections.values():
            section.node_removed()

    def _follow_scene(self) -> None:
        self.controller.follow_scene()
        for section in self.sections.values():
            section.follow_scene()

    def _shortcut(self, keys: str, call: Callable[[], None]) -> Any:
        """A shortcut that works in the slice views too; disabled at first."""
        window = slicer.util.mainWindow()
        shortcut = qt.QShortcut(window if window is not None else self.parent)
        shortcut.setKey(qt.QKeySequence(keys))
        shortcut.setEnabled(False)
        shortcut.setAutoRepeat(False)  # a key held down would complete slice after slice
        shortcut.activated.connect(call)
        return shortcut

    def _load_ui(self, name: str) -> Any:
        """The widgets of one .ui file by name, below those that are there; those that choose nodes get the scene."""
        root = slicer.util.loadUI(self.resourcePath(f"UI/{name}.ui"))
        self.layout.addWidget(root)
        root.installEventFilter(self._fitter)
        self._fitted.append(root)
        ui = slicer.util.childWidgetVariables(root)
        for widget in vars(ui).values():
            if widget.inherits("QTableWidget"):
                _fit_columns(widget, STRETCHED[widget.property("objectName")])
            if widget.inherits("qMRMLNodeComboBox"):
                widget.setMRMLScene(slicer.mrmlScene)
                self._scene_widgets.append(widget)
        return ui


class NeonatalSegLogic(ScriptedLoadableModuleLogic):
    """The parameter node, the models, and ``runner``, which brings volumes to the compute process and results back."""

    def __init__(self, engine: Any = start_engine) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.runner = SegmentationLogic(slicer.mrmlScene, engine)
        self.models: dict[str, str] = choices.known_models()
        self.models_changed = Signal()  # without arguments: ``models`` is another list, or begins with another model
        self.slices_changed = Signal()  # without arguments: a slice of the open study was completed or reopened

    def getParameterNode(self) -> NeonatalSegParameterNode:
        """The scene's parameters, typed."""
        return NeonatalSegParameterNode(ScriptedLoadableModuleLogic.getParameterNode(self))

    def close(self) -> None:
        """End the compute process."""
        self.runner.close()


class NeonatalSegTest(ScriptedLoadableModuleTest):
    """Slicer's "Reload and Test": the synthetic newborn, through the logic, into segments."""

    def setUp(self) -> None:
        """An empty scene."""
        slicer.mrmlScene.Clear(False)

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_bridge()

    def test_bridge(self) -> None:
        """The synthetic newborn becomes segments that keep its label values; no network needed."""
        from NeonatalSegLib.datasets.phantom import draw_newborn

        phantom = draw_newborn(age_weeks=sample.AGE_WEEKS, seed=0, spacing_mm=2.0)
        t2, labels = volume_from_image(phantom.t2, "newborn T2", slicer.mrmlScene), phantom.labels
        node = segments.segmentation_from_label_map(labels, "newborn", t2)
        counted = results.volumes_from_label_map(segments.label_map_from_segmentation(node))
        expected = results.volumes_from_label_map(labels)
        for tissue, volume in expected.items():
            if abs(counted[tissue] - volume) > 1e-3:
                raise AssertionError(f"{tissue}: {counted[tissue]} mL after the way through the scene, {volume} before")
        self.delayDisplay("Test passed")


def _cell(text: str, colour: Any = None, right: bool = False, ticked: bool | None = None) -> Any:
    """A cell of a table, with a swatch of ``colour`` (red, green, blue), a tick, or its text to the right."""
    item = qt.QTableWidgetItem(text)
    if colour is not None:
        item.setData(qt.Qt.DecorationRole, qt.QColor(*colour))
    if right:
        item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    if ticked is not None:
        item.setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)
    return item


class _HeightFitter(qt.QWidget):
    """Has the sections claim the height of what they show, whenever that or their width changes."""

    def eventFilter(self, root: Any, event: Any) -> bool:
        """Called by Qt for every event of the sections."""
        if event.type() in (qt.QEvent.Resize, qt.QEvent.LayoutRequest):
            drawing.fit_height(root)
        return False


def _fit_columns(table: Any, stretched: int) -> None:
    """One column takes the room that the others, as wide as their texts, leave: none lies outside a narrow panel."""
    header = table.horizontalHeader()
    for column in range(int(table.property("columnCount"))):
        mode = qt.QHeaderView.Stretch if column == stretched else qt.QHeaderView.ResizeToContents
        header.setSectionResizeMode(column, mode)


def _open_segment_editor(node: Any, volume: Any) -> None:
    """Slicer's Segment Editor with a segmentation, and its scan behind it."""
    slicer.util.selectModule("SegmentEditor")
    editor = slicer.modules.SegmentEditorWidget.editor
    editor.setSegmentationNode(node)
    if volume is not None:
        editor.setSourceVolumeNode(volume)
        slicer.util.setSliceViewerLayers(background=volume)


def _confirm(text: str) -> bool:
    return bool(slicer.util.confirmOkCancelDisplay(text, windowTitle="NeonatalSeg"))


def _choose_folder(title: str, start: str = "") -> str:
    return str(qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title, start) or "")


def _choose_file(title: str, kinds: str) -> str:
    return str(qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, "", kinds) or "")


def _read_setting(name: str) -> str:
    return str(slicer.app.userSettings().value(f"NeonatalSeg/{name}") or "")


def _write_setting(name: str, text: str) -> None:
    slicer.app.userSettings().setValue(f"NeonatalSeg/{name}", text)


def _timer() -> Any:
    timer = qt.QTimer()
    timer.setInterval(POLL_MS)
    return timer


def _active() -> bool:
    return qt.QApplication.activeWindow() is not None
