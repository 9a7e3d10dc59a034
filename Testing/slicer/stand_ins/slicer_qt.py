"""Slicer's scripted modules outside Slicer: what the wheel lacks, small and strict. ``install()`` once per process."""

from __future__ import annotations

import importlib
import sys
import types
from types import SimpleNamespace
from typing import Any

import slicer
import slicer.util
import slicer_scene
import vtk

ROOT = slicer_scene.ROOT
_installed = False


class Settings:
    """``QSettings``: texts by name."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def value(self, name: str) -> Any:
        return self.texts.get(name)

    def setValue(self, name: str, value: Any) -> None:
        assert isinstance(value, str)
        self.texts[name] = value


class SliceView:
    """A slice view without pixels."""

    def __init__(self) -> None:
        self.window = vtk.vtkRenderWindow()
        self.window.AddRenderer(vtk.vtkRenderer())
        self.rendered = 0

    def renderWindow(self) -> Any:
        return self.window

    def scheduleRender(self) -> None:
        self.rendered += 1

    def texts(self) -> list[str]:
        """For tests alone: what is written into the view."""
        props = self.window.GetRenderers().GetFirstRenderer().GetViewProps()
        return [props.GetItemAsObject(number).GetInput() for number in range(props.GetNumberOfItems())]


class ThreeDView:
    """A 3D view: counts how often it was centred."""

    def __init__(self) -> None:
        self.centred = 0

    def resetFocalPoint(self) -> None:
        self.centred += 1


class LayoutManager:
    """``slicer.app.layoutManager()`` of a Slicer with a main window."""

    def __init__(self) -> None:
        self.slices = {name: SliceView() for name in ("Red", "Yellow", "Green")}
        self.solid = ThreeDView()
        self.threeDViewCount = 1

    def sliceWidget(self, name: str) -> Any:
        view = self.slices.get(name)
        return types.SimpleNamespace(sliceView=lambda: view) if view is not None else None

    def threeDWidget(self, number: int) -> Any:
        return types.SimpleNamespace(threeDView=lambda: self.solid)


class Application:
    """``slicer.app``: unknown attributes raise."""

    is_stand_in = True

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.layout: Any = None  # a test may put a ``LayoutManager`` here
        self.settings = Settings()

    def connect(self, signal: str, receiver: Any) -> None:
        assert signal == "startupCompleted()", signal
        self.started.append(receiver)

    def layoutManager(self) -> Any:
        return self.layout

    def userSettings(self) -> Any:
        return self.settings

    def processEvents(self, *_: Any) -> None:
        import strict_qt

        strict_qt.application().processEvents()

    def topLevelWidgets(self) -> list[Any]:
        import strict_qt

        return list(strict_qt.application().topLevelWidgets())

    def testingEnabled(self) -> bool:
        return True


class ScriptedLoadableModule:
    """Base of the Module class."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent

    def getDefaultModuleDocumentationLink(self) -> str:
        return ""


class ScriptedLoadableModuleWidget:
    """Base of the Widget class: as in Slicer, ``setup`` runs in the constructor where there is no parent."""

    def __init__(self, parent: Any = None) -> None:
        import qt

        if parent is None:
            self.parent = qt.QWidget()
            self.parent.setLayout(qt.QVBoxLayout())
            self.layout = self.parent.layout()
            self.setup()
        else:
            self.parent = parent
            self.layout = parent.layout()

    def setup(self) -> None:
        """Nothing to be added here."""

    def resourcePath(self, name: str) -> str:
        return str(ROOT / "NeonatalSeg" / "Resources" / name)

    def onReload(self) -> None:
        """As ``slicer.util.reloadScriptedModule``: the old widget is cleaned up, the new one is not entered."""
        self.cleanup()  # type: ignore[attr-defined]
        name = type(self).__name__
        source = importlib.import_module(type(self).__module__)
        widget = getattr(importlib.reload(source), name)(self.parent)
        widget.makeEngine = self.makeEngine  # type: ignore[attr-defined]  # a test's, not the real process
        widget.setup()
        setattr(slicer.modules, name, widget)


class ScriptedLoadableModuleLogic:
    """Base of the Logic class: knows its singleton parameter node."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> Any:
        found = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if found is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.SetSingletonTag(self.moduleName)
            node.SetModuleName(self.moduleName)
            node.SetName(self.moduleName)
            found = slicer.mrmlScene.AddNode(node)
            node.UnRegister(None)
        return found


class ScriptedLoadableModuleTest:
    """Base of the Test class."""

    def delayDisplay(self, message: str) -> None:
        print(message)


class SampleDataLogic:
    """``SampleData.SampleDataLogic``: keeps what was registered. Accepts the arguments that Slicer does."""

    registered: list[dict[str, Any]] = []

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileType: Any = None,
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
    ) -> None:
        # As in Slicer: a source without uris or without file names cannot be made.
        assert isinstance(uris, (str, list)) and isinstance(fileNames, (str, list))
        SampleDataLogic.registered.append(dict(category=category, sampleName=sampleName, load=customDownloader))


def install() -> None:
    """Everything a scripted module imports; a scene has to be made for each test."""
    global _installed
    if _installed or slicer_scene.in_slicer():
        return
    _installed = True
    import strict_qt  # PySide6 in place of PythonQt; not to be had in Slicer

    strict_qt.install()
    strict_qt.application()
    slicer.app = Application()
    import stand_in_editor_widget
    import stand_in_widgets

    strict_qt.register(stand_in_widgets.ctkCollapsibleButton, "ctk")
    strict_qt.register(stand_in_widgets.ctkSliderWidget, "ctk")
    strict_qt.register(stand_in_widgets.qMRMLNodeComboBox, "slicer")
    strict_qt.register(stand_in_editor_widget.qMRMLSegmentEditorWidget, "slicer")
    import stand_in_parameters

    scripted = types.ModuleType("slicer.ScriptedLoadableModule")
    for cls in (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ):
        setattr(scripted, cls.__name__, cls)
    _module("slicer.ScriptedLoadableModule", scripted)
    wrapper = types.ModuleType("slicer.parameterNodeWrapper")
    wrapper.parameterNodeWrapper = stand_in_parameters.parameterNodeWrapper  # type: ignore[attr-defined]
    wrapper.WithinRange = stand_in_parameters.WithinRange  # type: ignore[attr-defined]
    _module("slicer.parameterNodeWrapper", wrapper)
    translate = types.ModuleType("slicer.i18n")
    translate.tr = lambda text: text  # type: ignore[attr-defined]
    translate.translate = lambda context, text: text  # type: ignore[attr-defined]
    _module("slicer.i18n", translate)
    sys.modules["SampleData"] = SimpleNamespace(SampleDataLogic=SampleDataLogic)  # type: ignore[assignment]
    folder = str(ROOT / "NeonatalSeg")
    if folder not in sys.path:
        sys.path.insert(0, folder)


def make_widget(engine: Any = None) -> Any:
    """The module's widget in a parent, set up as Slicer does it; ``engine`` makes its compute process."""
    install()
    import qt

    import NeonatalSeg

    parent = qt.QWidget()
    parent.setLayout(qt.QVBoxLayout())
    widget = NeonatalSeg.NeonatalSegWidget(parent)
    if engine is not None:
        widget.makeEngine = engine
    widget.setup()
    return widget


def _module(name: str, module: types.ModuleType) -> None:
    sys.modules[name] = module
    setattr(slicer, name.split(".")[1], module)
