"""What a mask on slots must do to a real training, step by step; read off the tensors alone."""

from dataclasses import dataclass

import torch

from tasks.local_methods.pairs import lora_pairs
from tasks.training.loop import TrainingSpec
from tasks.training.models import BaseModel
from tests.local_methods.cases import OCCASION, Make, Snapshot, factor_names, model_of, trace


@dataclass(frozen=True)
class Step:
    """What one step did to one module.

    Args:
        number: Of the step, from 1.
        path: The module.
        rank: The module's rank.
        a: Slots of `a` that moved.
        b: Slots of `b` that moved.
        remembered: Slots of `a` whose moments changed.
    """

    number: int
    path: str
    rank: int
    a: frozenset[int]
    b: frozenset[int]
    remembered: frozenset[int]


def steps_of(base: BaseModel, made: Make, spec: TrainingSpec) -> list[Step]:
    """Train for real, and say what moved."""
    model = model_of(base)
    ranks = {pair.path: pair.rank for pair in lora_pairs(model)}
    snapshots = trace(base, model, made(OCCASION), spec)
    return [
        _step(number, path, ranks[path], names, (snapshots[number - 1], snapshots[number]))
        for number in range(1, len(snapshots))
        for path, names in factor_names(model).items()
    ]


def _step(number: int, path: str, rank: int, names: tuple[str, str], around: tuple[Snapshot, Snapshot]) -> Step:
    before, after = around
    a, b = (_moved(before.parameters[n], after.parameters[n], dim) for dim, n in enumerate(names))
    memory = after.moments[names[0]]
    earlier = before.moments.get(names[0], {})
    changed = [_moved(earlier.get(key, torch.zeros_like(t)), t, 0) for key, t in memory.items()]
    return Step(number, path, rank, a, b, frozenset().union(*changed))


def _moved(before: torch.Tensor, after: torch.Tensor, dimension: int) -> frozenset[int]:
    slots = (before != after).movedim(dimension, 0).flatten(1).any(dim=1)
    return frozenset(slots.nonzero().flatten().tolist())


def the_first_step_trains_all(steps: list[Step]) -> None:
    for step in steps:
        if step.number == 1:
            assert len(step.a) == len(step.b) == step.rank


def later_steps_train_exactly(steps: list[Step], count: int) -> None:
    later = [step for step in steps if step.number > 1]
    assert later
    assert all(len(step.a) == len(step.b) == count for step in later)


def slots_that_sit_out_keep_their_moments(steps: list[Step]) -> None:
    assert all(step.remembered <= step.a for step in steps)


def a_and_b_train_the_same_slots(steps: list[Step]) -> None:
    assert all(step.a == step.b for step in steps)


def draws_differ_between_steps_and_modules(steps: list[Step]) -> None:
    later = [step for step in steps if step.number > 1]
    numbers, paths = {s.number for s in later}, {s.path for s in later}
    assert all(len({s.a for s in later if s.path == path}) > 1 for path in paths)
    assert any(len({s.a for s in later if s.number == number}) > 1 for number in numbers)
