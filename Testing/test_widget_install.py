"""What the panel installs, and what it asks and says about it."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import slicer
from widget_case import REPLACED, WidgetCase

from NeonatalSegLib.mrml.shared import dependencies
from NeonatalSegLib.panel.segment_state import State

REAL = (dependencies.TORCH, dependencies.MONAI, dependencies.PSUTIL)


class InstallTest(WidgetCase):
    """A package that is not there, installed by stand-ins for Slicer's packaging functions."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []
        self.to_segment = dependencies.to_segment
        self.site = tempfile.TemporaryDirectory()
        self.addCleanup(self.site.cleanup)
        needed = [dependencies.Requirement("made_up_package", "made-up-package>=1", "Made-up package, about 3 MB")]
        patch = mock.patch(REPLACED, lambda: needed)
        patch.start()
        self.addCleanup(patch.stop)
        sys.path.append(self.site.name)
        self.addCleanup(sys.path.remove, self.site.name)
        self.load_scan()

    def answer(self, yes: bool) -> None:
        def confirm(text: str) -> bool:
            self.asked.append(text)
            return yes

        self.widget.controller.confirm = confirm

    def put_package(self, *_: Any, **__: Any) -> None:
        (Path(self.site.name) / "made_up_package.py").write_text("", encoding="utf-8")
        importlib.invalidate_caches()

    def test_declined(self) -> None:
        self.answer(False)
        self.assertIn("not installed", self.text("deviceLabel"))
        self.ui.segmentButton.click()
        self.assertEqual(len(self.asked), 1)
        self.assertIn("Made-up package, about 3 MB", self.asked[0])
        self.assertEqual(self.panel.state, State.IDLE)
        self.assertIn("Nothing was installed", self.text("messageLabel"))
        self.assertEqual(self.engine.requests, [])
        self.assertTrue(self.ui.segmentButton.isEnabled())

    def packaging(self, calls: list[Any]) -> Any:
        """``slicer.packaging`` of Slicer 5.12, with the signature that is there."""

        def pip_install(
            requirements: str,
            constraints: Any = None,
            no_deps_requirements: Any = None,
            skip_packages: Any = None,
            blocking: bool = True,
            show_progress: bool = True,
            requester: str | None = None,
            parent: Any = None,
        ) -> None:
            calls.append((requirements, requester, self.text("messageLabel")))
            self.put_package()

        made = types.ModuleType("slicer.packaging")
        made.pip_install = pip_install  # type: ignore[attr-defined]
        return mock.patch.dict(sys.modules, {"slicer.packaging": made})

    def test_one_call_for_all_without_a_question_about_a_restart(self) -> None:
        """pip once per package had Slicer ask for a restart after the first, before the others were there."""
        other = dependencies.Requirement("made_up_headless", "made-up-headless>=2", "For runs without a screen, 1 MB")
        self.answer(True)
        calls: list[Any] = []
        with mock.patch("NeonatalSegLib.mrml.shared.dependencies.HEADLESS", (other,)), self.packaging(calls):
            self.run_to_request()
        self.assertEqual(len(self.asked), 1)
        ((arguments, requester, _),) = calls
        self.assertEqual((arguments, requester), ("made-up-package>=1 made-up-headless>=2", "NeonatalSeg"))

    def test_what_runs_without_a_screen_need_is_never_asked_for_alone(self) -> None:
        self.put_package()
        other = dependencies.Requirement("made_up_headless", "made-up-headless>=2", "For runs without a screen, 1 MB")
        with mock.patch("NeonatalSegLib.mrml.shared.dependencies.HEADLESS", (other,)):
            self.run_to_request()  # no dialog

    def test_the_script_without_a_screen_needs_what_the_dialog_installs(self) -> None:
        import segment_headless

        slicers_own = {"SimpleITK", "scipy"}
        installed = {needed.module for needed in (*REAL, *dependencies.HEADLESS)}
        self.assertEqual(set(segment_headless.NEEDED) - slicers_own - installed, set())

    def test_what_is_being_installed_is_said_while_it_is(self) -> None:
        self.answer(True)
        calls: list[Any] = []
        with self.packaging(calls):
            self.run_to_request()
        self.assertIn("Installing made-up-package>=1", calls[0][2])
        self.assertNotIn("Installing", self.text("messageLabel"))

    def test_installed_before_slicer_5_12(self) -> None:
        self.answer(True)
        with (
            mock.patch.dict(sys.modules, {"slicer.packaging": None}),
            mock.patch.object(slicer.util, "pip_install", self.put_package, create=True),
        ):
            self.run_to_request()

    def test_installation_that_fails(self) -> None:
        self.answer(True)

        def fail(requirement: str) -> None:
            raise RuntimeError("no network")

        with (
            mock.patch.dict(sys.modules, {"slicer.packaging": None}),
            mock.patch.object(slicer.util, "pip_install", fail, create=True),
        ):
            self.ui.segmentButton.click()
        self.assertEqual(self.panel.state, State.ERROR)
        self.assertIn("no network", self.text("messageLabel"))
        self.assertIn("made-up-package", self.text("messageLabel"))

    def test_what_segment_needs_is_small_and_pytorch_comes_with_a_card_or_with_fine_tuning(self) -> None:
        there: set[str] = set()

        def names(*, card: bool = False, wheels: bool = True, finetuning: bool = False) -> list[str]:
            with (
                mock.patch.object(dependencies, "nvidia_card", lambda: card),
                mock.patch.object(dependencies, "has_wheels", lambda: wheels),
                mock.patch.object(dependencies, "_is_there", lambda needed: needed.module in there),
                mock.patch.object(dependencies, "to_segment", self.to_segment),
            ):
                return [needed.module for needed in dependencies.missing(finetuning=finetuning)]

        self.assertEqual(names(), ["openvino", "psutil"])
        self.assertEqual(names(card=True), ["torch", "monai", "psutil"])
        self.assertEqual(names(wheels=False), ["torch", "monai", "psutil"])
        self.assertEqual(names(finetuning=True), ["torch", "monai", "openvino", "psutil"])
        there.update(("openvino", "psutil"))
        self.assertEqual(names(), [])
        self.assertEqual(names(finetuning=True), ["torch", "monai"])
        there.clear()
        there.update(("torch", "monai", "psutil"))  # an installation from before there was a second engine
        self.assertEqual(names(), [])

    def test_torch_comes_through_its_extension(self) -> None:
        calls: list[Any] = []
        logic = types.SimpleNamespace(installTorch=lambda **given: calls.append(given))
        utils = types.ModuleType("PyTorchUtils")
        utils.PyTorchUtilsLogic = lambda: logic  # type: ignore[attr-defined]
        utils.__spec__ = importlib.machinery.ModuleSpec("PyTorchUtils", None)
        with mock.patch.dict(sys.modules, {"PyTorchUtils": utils}), self.packaging(calls):
            dependencies._install(REAL)
            self.assertNotIn("Install extensions", dependencies.question(REAL))
        self.assertEqual(calls[0], {"torchVersionRequirement": ">=2.10"})
        self.assertEqual(calls[1][0], "monai>=1.4 psutil>=5.9")

    def test_without_an_nvidia_card_the_build_for_the_cpu_is_taken(self) -> None:
        """pip's default on Linux brought 6.8 GB to a computer that could use none of it."""
        place = "NeonatalSegLib.mrml.shared.dependencies"
        with mock.patch(f"{place}.nvidia_card", lambda: False), mock.patch(f"{place}.sys.platform", "linux"):
            self.assertIn(f"--extra-index-url {dependencies.CPU_BUILDS}", dependencies.pip_arguments(REAL))
            self.assertIn("about 0.2 GB", dependencies.question(REAL))
            self.assertIn("The better way to PyTorch is the extension", dependencies.question(REAL))
        with mock.patch(f"{place}.nvidia_card", lambda: True):
            self.assertEqual(dependencies.pip_arguments(REAL), "torch>=2.10 monai>=1.4 psutil>=5.9")
            self.assertIn("2 to 4 GB", dependencies.question(REAL))

    def test_the_dialog_promises_nothing_that_pip_does_not_keep(self) -> None:
        """setuptools was updated by an installation whose dialog said that Slicer's own packages are not changed."""
        self.assertNotIn("not changed", dependencies.question(REAL))
        self.assertIn("setuptools", dependencies.question(REAL))


if __name__ == "__main__":
    unittest.main()
