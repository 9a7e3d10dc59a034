"""What this computer's processor can do, and the precision that follows for PyTorch on it.

A processor without instructions for bfloat16 only imitates it: there fp32 is faster (22.0 s against 15.3 s for one
newborn on two such cores). Standard library only, so that it can be asked before anything heavy is imported.

>>> torch_precision({"avx2", "avx512f"})
'fp32'
>>> torch_precision({"avx2", "avx512f", "avx512_bf16"})
'bf16'
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import subprocess
import sys
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

# The features that matter here, in Linux's spelling: vector width, 8-bit products, 16-bit products.
FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "amx_tile",
    "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip
BF16_FEATURES = ("amx_bf16", "avx512_bf16")
# By the name that macOS (sysctl) or numpy (on Windows) has for them.
OTHER_NAMES = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
    "hw.optional.avx512bf16": "avx512_bf16",
    "hw.optional.neon": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "AVX2": "avx2",
    "AVX512F": "avx512f",
    "AVX512VNNI": "avx512_vnni",
    "AVX512BF16": "avx512_bf16",
    "AVX512_SPR": "avx512_bf16",  # older numpy: a group of features that holds it
    "ASIMD": "asimd",
    "ASIMDDP": "asimddp",
}


def torch_precision(features: Collection[str]) -> str:
    """ "bf16" where the processor has instructions for it (AMX or AVX512-BF16), else "fp32"."""
    return "bf16" if any(name in features for name in BF16_FEATURES) else "fp32"


@lru_cache(1)
def processor_features() -> frozenset[str]:
    """Those of ``FEATURES`` that this computer's processor has; empty where the system does not tell."""
    found: set[str] = set()
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError, ImportError):
        if sys.platform == "darwin":
            found = _of_mac()
        elif sys.platform == "win32":
            found = _of_numpy()
        else:
            found = _of_linux(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    return frozenset(found)


@lru_cache(1)
def processor_name() -> str:
    """The processor in words, such as "AMD EPYC"; the architecture where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            return _sysctl("machdep.cpu.brand_string").strip()
        if sys.platform != "win32":
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def features_text(features: Collection[str]) -> str:
    """For side-cars and tables: "avx2 avx512f avx512_vnni", or "unknown"."""
    return " ".join(name for name in FEATURES if name in features) or "unknown"


def _of_linux(cpuinfo: str) -> set[str]:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):  # the second on ARM
            return set(FEATURES) & set(value.split())
    return set()


def _of_mac() -> set[str]:
    lines = (line.partition(":") for line in _sysctl("hw.optional").splitlines())
    return {OTHER_NAMES[key] for key, _, value in lines if key in OTHER_NAMES and value.strip() == "1"}


def _of_numpy() -> set[str]:
    """Windows tells only the oldest features; numpy asks the processor itself."""
    try:
        numpy = importlib.import_module("numpy._core._multiarray_umath")
    except ImportError:  # before numpy 2
        numpy = importlib.import_module("numpy.core._multiarray_umath")
    table: dict[str, bool] = numpy.__cpu_features__
    return {OTHER_NAMES[key] for key, there in table.items() if there and key in OTHER_NAMES}


def _sysctl(name: str) -> str:
    arguments = ["/usr/sbin/sysctl", name] if name.startswith("hw.") else ["/usr/sbin/sysctl", "-n", name]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=5, check=True).stdout
