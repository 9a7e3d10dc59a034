"""An age head for a model that has none, behind its encoder as it is: the segmentation stays what it was.

    python benchmarks/age_head.py --data DATA --model neonatal-v4 --out OUT

DATA holds ``alberts``, ``templates`` and ``fetal_crl``. The head (``networks/unet.py:AgeHead``) keeps the random
convolution that it starts with; its linear layer is a ridge regression over the windows of the model's own training
newborns and templates, T1+T2, T2 and T1, how strong is chosen by leaving out one subject at a time. Printed: errors in
weeks of the subjects that were left out each, of ALBERTs that nothing trained, and of the fetal atlas. OUT/model is the
bundle with the head; OUT/features.npz is kept, so that the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from NeonatalSegLib.brain_finder.find import brain_distance
from NeonatalSegLib.experiments.annotator.domains import read_labelled, read_templates
from NeonatalSegLib.models.bundle import Model, save_model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.cpu_form import faster_on_cpu
from NeonatalSegLib.networks.network import build_network
from NeonatalSegLib.networks.sliding_window import OVERLAP, window_starts
from NeonatalSegLib.networks.unet import TERM_WEEKS, AgeUNet
from NeonatalSegLib.scans.preprocessing import Prepared, prepare
from NeonatalSegLib.scans.scan import Scan, load_scan

TEMPLATE_WEEKS, FETAL_WEEKS = range(28, 45, 2), range(28, 39, 2)
SHOWN = {"T1+T2": (), "T2": (0,), "T1": (1,)}  # channels that are left out
STRENGTHS = tuple(10.0**n for n in np.arange(-3, 4.1, 0.5))


def network_with_head(model: Model) -> AgeUNet:
    """The model's network and a new head; seed 0."""
    torch.manual_seed(0)
    network = build_network(replace(model.network, age_head=True))
    assert isinstance(network, AgeUNet)
    network.load_state_dict({**network.state_dict(), **model.load_network().state_dict()})
    return network.eval()


def scans(data: Path) -> Iterator[tuple[str, Scan]]:
    """What kind (newborn, template, fetal) and the scan with its age."""
    for scan, _ in read_labelled(data / "alberts", ()):
        yield "newborn", scan
    for scan, _ in read_templates(data / "templates", TEMPLATE_WEEKS):
        yield "template", scan
    for week in FETAL_WEEKS:
        file = data / "fetal_crl" / f"week-{week}_T2w.nii.gz"
        yield "fetal", load_scan(t2=file, name=f"week-{week}", age_weeks=float(week))


@torch.inference_mode()
def pooled(network: AgeUNet, prepared: Prepared, window: tuple[int, ...], hidden: tuple[int, ...]) -> np.ndarray:
    """What the head's linear layer sees of each window, and how much of the window is head: (windows, width + 1)."""
    image = np.array(prepared.array)
    image[list(hidden)] = 0
    room = [max(w - s, 0) for w, s in zip(window, image.shape[1:], strict=True)]
    image = np.pad(image, [(0, 0)] + [(n // 2, n - n // 2) for n in room], mode="edge")
    inside = np.pad(prepared.inside, [(n // 2, n - n // 2) for n in room])
    rows = []
    places = [window_starts(n, w, OVERLAP) for n, w in zip(image.shape[1:], window, strict=True)]
    for start in np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(-1, 3):
        box = tuple(slice(int(a), int(a) + w) for a, w in zip(start, window, strict=True))
        features, _ = network.encode(torch.from_numpy(np.ascontiguousarray(image[(slice(None), *box)]))[None])
        seen = network.age_head.act(network.age_head.conv(features)).float().mean((2, 3, 4))[0].numpy()
        rows.append(np.append(seen, inside[box].mean()))
    return np.array(rows, np.float32)


def collect(network: AgeUNet, model: Model, data: Path, file: Path) -> dict[str, np.ndarray]:
    """Features of all windows of all scans by ``kind/name/weeks/what is shown``; kept in ``file`` as it goes."""
    found = dict(np.load(file)) if file.exists() else {}
    fast = faster_on_cpu(network, torch.device("cpu"))
    for kind, scan in scans(data):
        shown = {"T2": ()} if kind == "fetal" else SHOWN
        keys = [f"{kind}/{scan.name}/{scan.age_weeks:g}/{what}" for what in shown]
        if all(key in found for key in keys):
            continue
        prepared = prepare(scan, model.spacing_mm, find_brain=brain_distance)
        for key, hidden in zip(keys, shown.values(), strict=True):
            found[key] = pooled(fast, prepared, model.network.patch, hidden)
        np.savez(file, **found)
        print(keys[0], len(found[keys[0]]), flush=True)
    return found


class Ridge:
    """Weeks from term by a linear layer over standardised features; windows weigh by how much of them is head."""

    def __init__(self, parts: dict[str, np.ndarray], strength: float) -> None:
        x = np.concatenate([rows[:, :-1] for rows in parts.values()]).astype(float)
        w = np.concatenate([rows[:, -1] / rows[:, -1].sum() for rows in parts.values()])
        y = np.concatenate([np.full(len(rows), weeks_of(key) - TERM_WEEKS) for key, rows in parts.items()])
        w /= w.sum()
        self.middle, self.offset = w @ x, w @ y
        self.spread = np.sqrt(w @ (x - self.middle) ** 2) + 1e-6
        z = (x - self.middle) / self.spread
        kernel = (z * w[:, None]) @ z.T + strength * np.eye(len(z))
        self.weight = z.T @ np.linalg.solve(kernel, w * (y - self.offset)) if len(z) else np.zeros(0)

    def layer(self) -> tuple[np.ndarray, float]:
        """Weight and bias on features as they are."""
        weight = self.weight / self.spread
        return weight, self.offset - float(weight @ self.middle)

    def weeks(self, rows: np.ndarray) -> float:
        weight, bias = self.layer()
        return TERM_WEEKS + float(np.average(rows[:, :-1] @ weight + bias, weights=rows[:, -1] + 1e-6))


def weeks_of(key: str) -> float:
    return float(key.split("/")[2])


def left_out(parts: dict[str, np.ndarray], strength: float) -> dict[str, float]:
    """Error in weeks of each scan by a regression that has not seen its subject."""
    errors = {}
    for name in sorted({key.split("/")[1] for key in parts}):
        ridge = Ridge({k: v for k, v in parts.items() if k.split("/")[1] != name}, strength)
        errors |= {k: ridge.weeks(v) - weeks_of(k) for k, v in parts.items() if k.split("/")[1] == name}
    return errors


def told(title: str, errors: dict[str, float]) -> None:
    """One line for each way to show a scan: mean absolute error, largest, and all."""
    for what in SHOWN:
        rows = {k.split("/")[1]: e for k, e in errors.items() if k.endswith("/" + what)}
        if rows:
            each = " ".join(f"{name.removeprefix('sub-ALBERT')}:{e:+.1f}" for name, e in rows.items())
            sizes = np.abs(list(rows.values()))
            print(f"{title}, {what}: {sizes.mean():.2f} weeks, at most {sizes.max():.2f} ({each})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = find_model(given.model)
    found = collect(network_with_head(model), model, given.data, given.out / "features.npz")
    trained = set(model.facts.training_subjects)
    learned = {k: v for k, v in found.items() if k.split("/")[1] in trained}
    spoken = {s: np.mean(np.abs(list(left_out(learned, s).values()))) for s in STRENGTHS}
    strength = min(spoken, key=spoken.__getitem__)
    print("strength", strength, {f"{s:.2g}": round(float(e), 2) for s, e in spoken.items()})
    errors = left_out(learned, strength)
    for kind in ("newborn", "template"):
        told(f"{kind}, left out", {k: e for k, e in errors.items() if k.startswith(kind)})
    ridge = Ridge(learned, strength)
    for kind in ("newborn", "fetal"):
        rest = {k: ridge.weeks(v) - weeks_of(k) for k, v in found.items() if k.startswith(kind) and k not in learned}
        told(f"{kind}, never seen", rest)
    network = network_with_head(model)
    weight, bias = ridge.layer()
    with torch.no_grad():
        network.age_head.linear.weight.copy_(torch.from_numpy(weight)[None])
        network.age_head.linear.bias.fill_(bias)
    settings = replace(model.network, age_head=True)
    kept = ("training", "training_subjects", "validation_subjects", "test_subjects", "mixed")
    facts = {key: value for key, value in model.metadata["neonatalseg"].items() if key in kept}
    save_model(network, settings, given.out / "model", description=model.description, facts=facts)


if __name__ == "__main__":
    main()
