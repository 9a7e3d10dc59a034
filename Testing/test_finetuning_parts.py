"""The parts of a fine-tuning: its pace, what is segmented to judge, the teacher, what is remembered."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_studies import DIRECTIONS, SLICES, small_scan

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.finetuning.batches import Batch, loss_of_batch
from NeonatalSegLib.finetuning.guard import agreement, kept, paint, painted_guard
from NeonatalSegLib.finetuning.mixing import boxes_to_segment, cost, evaluate
from NeonatalSegLib.finetuning.pace import FEWEST, Pace
from NeonatalSegLib.finetuning.settings import FineTuningSettings
from NeonatalSegLib.finetuning.sparse_labels import SparseCase, annotated_on, box_of
from NeonatalSegLib.finetuning.teacher import TAUGHT, label_the_rest
from NeonatalSegLib.networks.losses import DeepSupervisionLoss, distillation_loss
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.scans.grid import Grid, plane
from NeonatalSegLib.tissues import UNKNOWN

SHAPE = NetworkSettings((4, 6, 8), 2.0, (32, 32, 32), heads=1)


class ByBrightness(torch.nn.Module):
    """A network that sees each voxel alone: class 3 where T2 is bright, else 1; the brighter, the more certain."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(image), 10, *image.shape[2:]), -20.0)
        logits[:, 3], logits[:, 1] = 0.0, 0.0
        return (
            logits
            + torch.nn.functional.one_hot(torch.tensor(3), 10).reshape(1, 10, 1, 1, 1) * self.factor * image[:, 1:]
        )


# Time


class Clock:
    """A clock that goes on by as much as a step takes."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 100.0, seconds

    def __call__(self) -> float:
        return self.now

    def walk(self, pace: Pace) -> list[float]:
        """Steps until it is over; the share that is done after each."""
        shares = []
        while not pace.over:
            self.now += self.seconds
            pace.step_done()
            shares.append(pace.share)
        return shares


def test_with_time_enough_every_step_is_done_and_counts_alike() -> None:
    for left in (None, 1000.0):
        clock = Clock(0.5)
        shares = clock.walk(Pace(80, left, clock))
        np.testing.assert_allclose(shares, np.arange(1, 81) / 80)


def test_a_slow_machine_ends_in_time_and_with_its_learning_rate_at_zero() -> None:
    clock = Clock(2.0)
    pace = Pace(400, 100.0, clock)
    shares = clock.walk(pace)
    assert clock.now <= 200.0 + 2.0 and 45 <= len(shares) <= 51
    assert shares[-1] == pytest.approx(1.0) and all(b > a for a, b in itertools.pairwise(shares))
    assert pace.learning_rate(0.1) == 0.0


def test_a_machine_that_becomes_slow_on_the_way_still_ends_in_time() -> None:
    clock = Clock(1.0)
    pace = Pace(200, 200.0, clock)
    for _ in range(60):
        clock.now += 1.0
        pace.step_done()
    assert pace.steps > 190
    clock.seconds = 4.0
    clock.walk(pace)
    assert clock.now <= 300.0 + 8.0


def test_too_little_time_still_teaches_something() -> None:
    clock = Clock(10.0)
    assert len(clock.walk(Pace(300, 5.0, clock))) == FEWEST
    assert len(clock.walk(Pace(7, 5.0, clock))) == 7


def test_quarters_are_passed_once_each_whatever_the_number_of_steps() -> None:
    for steps in (4, 7, 10, 120):
        pace, passed = Pace(steps), 0
        while not pace.over:
            pace.step_done()
            passed += pace.passed(0.25)
        assert passed == 4


# What is segmented to judge


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_box_of_a_slice_holds_all_of_it_on_the_networks_grid(direction: str) -> None:
    target = Grid.of(small_scan(direction))
    middle = (target.matrix() @ [*(np.array(target.size) / 2), 1.0])[:3]
    first = tuple(float(m) - 1.3 * 16 for m in middle)
    coarse = Grid((32, 32, 32), (1.3, 1.3, 1.3), first, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))  # type: ignore[arg-type]
    for axis, index in SLICES:
        where = plane(target, axis, index)
        annotated = np.zeros(target.shape, bool)
        annotated[where] = True
        known = annotated_on(coarse, target, np.ones(target.shape, np.uint8), annotated) != UNKNOWN
        box = box_of(coarse, target, where)
        assert known[box].sum() == known.sum() > 0


def held_out_planes(size: int, *planes: tuple[int, int]) -> SparseCase:
    """Noise of which planes (axis, index) judge."""
    random = np.random.default_rng(0)
    image = random.normal(0, 1, (2, size, size, size)).astype(np.float32)
    truth = np.where(image[1] > 0.3, 3, 1).astype(np.uint8)
    held, boxes = np.full(truth.shape, UNKNOWN, np.uint8), []
    for axis, index in planes:
        where = [slice(0, size)] * 3
        where[axis] = slice(index, index + 1)
        held[tuple(where)] = truth[tuple(where)]
        boxes.append(tuple(where))
    return SparseCase("a", image, np.full(truth.shape, UNKNOWN, np.uint8), held, boxes=tuple(boxes))  # type: ignore[arg-type]


def test_few_slices_cost_a_part_of_the_scan_and_many_no_more_than_all_of_it() -> None:
    size, whole = (160, 160, 160), 160**3
    two = boxes_to_segment(held_out_planes(160, (0, 60), (2, 90)))
    assert len(two) == 2 and sum(cost(box, size) for box in two) < 0.6 * whole
    neighbours = boxes_to_segment(held_out_planes(160, (0, 60), (0, 64)))
    assert len(neighbours) == 1 and cost(neighbours[0], size) < 0.35 * whole
    many = boxes_to_segment(held_out_planes(160, *((axis, i) for axis in range(3) for i in range(20, 150, 30))))
    assert sum(cost(box, size) for box in many) <= whole


def test_what_is_judged_does_not_hang_on_how_much_is_segmented() -> None:
    """Crossing slices, counted once: the same figures as of the whole scan."""
    case = held_out_planes(96, (0, 30), (1, 31), (2, 90))
    assert len(boxes_to_segment(case)) == 3  # joined into one, they would be all of it
    all_of_it = SparseCase(case.name, case.image, case.labels, case.held_out, boxes=((slice(0, 96),) * 3,))  # type: ignore[arg-type]
    network = ByBrightness().eval()
    np.testing.assert_allclose(evaluate(network, SHAPE, [case]), evaluate(network, SHAPE, [all_of_it]))
    assert evaluate(network, SHAPE, [case])[3] < 1.0  # it does err, or this would show nothing


# The teacher and what is remembered


def test_the_teacher_fills_what_nobody_annotated_where_it_is_certain() -> None:
    image = np.zeros((2, 16, 16, 16), np.float32)
    image[1, :, :8] = 5.0  # certainly 3
    image[1, :, 8:] = 0.1  # 3, hardly more than 1
    labels = np.full((16, 16, 16), UNKNOWN, np.uint8)
    labels[4] = 1
    case = SparseCase("a", image, labels, np.full(labels.shape, UNKNOWN, np.uint8))
    for _ in range(2):  # what it said before is replaced, and still no annotation
        label_the_rest(case, ByBrightness().eval(), SHAPE, 0.8, (), torch.device("cpu"))
        assert (case.labels[4] == 1).all()
        rest = np.delete(case.labels, 4, axis=0)
        assert (rest[:, :8] == TAUGHT + 3).all() and (rest[:, 8:] == UNKNOWN).all()


def test_the_teacher_tells_no_more_apart_than_the_annotation() -> None:
    """A class that the loss has merged into another would be an impossible one, at a loss without bounds."""
    image = np.zeros((2, 16, 16, 16), np.float32)
    image[1] = 5.0
    image[1, :, 8:] = 0.1  # 3 or 1, neither certain, together certain
    labels = np.full(image.shape[1:], UNKNOWN, np.uint8)
    case = SparseCase("a", image, labels, np.full(labels.shape, UNKNOWN, np.uint8))
    groups = ((1, 3),)
    network = ByBrightness().eval()
    label_the_rest(case, network, SHAPE, 0.8, groups, torch.device("cpu"))
    assert (case.labels == TAUGHT + 1).all()
    taught = torch.from_numpy(case.labels)[None].long()
    batch = Batch(torch.from_numpy(image)[None], taught, [groups], [False])
    loss = loss_of_batch(network, network, DeepSupervisionLoss(), batch, FineTuningSettings(teacher=0.5))
    assert loss < 1.0


def one_batch(labels: torch.Tensor, rehearsed: bool) -> Batch:
    return Batch(torch.randn(1, 2, 16, 16, 16), labels, [()], [rehearsed])


def test_what_the_teacher_says_counts_by_its_weight() -> None:
    torch.manual_seed(0)
    network, loss = ByBrightness(), DeepSupervisionLoss()
    taught = torch.full((1, 16, 16, 16), TAUGHT + 1)
    batch = one_batch(taught, False)
    plain = loss_of_batch(network, network, loss, batch._replace(labels=taught - TAUGHT), FineTuningSettings())
    for weight in (0.0, 0.5):
        found = loss_of_batch(network, network, loss, batch, FineTuningSettings(teacher=weight))
        torch.testing.assert_close(found, weight * plain)


def test_the_old_model_is_remembered_whatever_was_drawn() -> None:
    """Least where the new model says what the old one did, and blind to the labels of the drawing."""
    torch.manual_seed(0)
    old, new, loss = ByBrightness(), ByBrightness(), DeepSupervisionLoss()
    settings = FineTuningSettings(distil=True)
    batch = one_batch(torch.full((1, 16, 16, 16), 7), True)
    same = loss_of_batch(new, old, loss, batch, settings)
    other_labels = batch._replace(labels=torch.full((1, 16, 16, 16), 2))
    torch.testing.assert_close(loss_of_batch(new, old, loss, other_labels, settings), same)
    same.backward()
    assert new.factor.grad is not None and abs(float(new.factor.grad)) < 1e-6
    with torch.no_grad():
        new.factor.mul_(3.0)
    assert loss_of_batch(new, old, loss, batch, settings) > same


def test_distillation_is_least_at_the_same_probabilities() -> None:
    torch.manual_seed(0)
    target = torch.randn(2, 10, 3, 3, 3)
    least = distillation_loss(target, target)
    assert all(distillation_loss(target + torch.randn_like(target), target) > least for _ in range(5))


def drawn_newborn() -> SparseCase:
    """Fully labelled with the classes 1 and 3, of which 3 is bright in T2."""
    labels = np.ones((32, 32, 32), np.uint8)
    labels[8:24, 8:24, 8:24] = 3
    image = np.stack([np.zeros(labels.shape), np.where(labels == 3, 4.0, -4.0)]).astype(np.float32)
    return SparseCase("drawn", image, labels, np.full(labels.shape, UNKNOWN, np.uint8))


def test_a_painting_has_the_brightness_of_a_newborn_on_the_users_anatomy() -> None:
    labels = np.ones((24, 24, 24), np.uint8)
    labels[:12] = 3
    image = paint(labels, drawn_newborn())
    assert image.shape == (2, 24, 24, 24)
    assert abs(image[1, :10].mean() - 4) < 0.1 and abs(image[1, 14:].mean() + 4) < 0.1 and abs(image[0].mean()) < 0.1


def test_the_guard_sees_that_a_model_has_changed_its_mind_and_no_truth_is_needed() -> None:
    old, newborn = ByBrightness().eval(), drawn_newborn()
    case = replace(newborn, image=newborn.image * 0.5)  # another contrast, in which the old model still sees
    guard = painted_guard(old, SHAPE, case, newborn, torch.device("cpu"))
    assert guard is not None
    found = {}
    for factor in (1.0, 1.5, -1.0):
        new = ByBrightness().eval()
        new.factor.data.fill_(factor)
        found[factor] = agreement(new, guard, SHAPE, torch.device("cpu"))
    assert found[1.0] == found[1.5] == 1.0 and found[-1.0] < 0.3
    assert kept(1.0) == 1.0 and kept(0.5) < kept(0.9) < 0.99 < kept(0.95)


def test_where_the_old_model_sees_no_tissue_nothing_is_guarded() -> None:
    class Blind(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(image), 10, *image.shape[2:]).index_fill(1, torch.tensor(0), 9.0)

    assert painted_guard(Blind().eval(), SHAPE, drawn_newborn(), drawn_newborn(), torch.device("cpu")) is None


@pytest.mark.parametrize("wrong", [{"keep": "nothing"}, {"minutes": 0}, {"teacher": 2.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(NeonatalSegError):
        FineTuningSettings.from_json(wrong)


def test_without_steps_there_is_a_limit_of_minutes_and_with_them_none() -> None:
    assert FineTuningSettings().minutes == 6.0 and FineTuningSettings(steps=2000).minutes is None
    assert FineTuningSettings(steps=2000, minutes=3).minutes == 3
    for made in (FineTuningSettings(), FineTuningSettings(keep="scanner"), FineTuningSettings(steps=7)):
        assert FineTuningSettings.from_json(made.to_json()) == made


def test_for_scans_like_these_more_is_learned() -> None:
    every, scanner = FineTuningSettings(), FineTuningSettings(keep="scanner")
    assert max(scanner.mixes) == 1.0 > max(every.mixes) and min(every.mixes) < min(scanner.mixes)
    assert FineTuningSettings(keep="scanner", steps=5, mixes=(0.5,)).mixes == (0.5,)
