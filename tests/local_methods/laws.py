"""What every local method keeps to, as plain functions: the table's rows pass, mutants must not."""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from peft import PeftModel

from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.pairs import lora_pairs
from tasks.local_methods.together import Together
from tasks.training.models import BaseModel
from tests.local_methods.cases import (
    OCCASION,
    Make,
    Snapshot,
    dense_names,
    factor_names,
    loss_of,
    make,
    model_of,
    plain,
    same_bits,
    trace,
    trained,
)


@dataclass(frozen=True)
class Training:
    """One real training of a fresh model, for all the laws that look at one.

    Args:
        model: After it.
        method: After it.
        frozen: Names of the base's own weights that nobody may touch.
        steps: What every step left behind.
    """

    model: PeftModel
    method: LocalMethod
    frozen: list[str]
    steps: list[Snapshot]


def training(base: BaseModel, made: Make) -> Training:
    """Train a fresh model under a method."""
    model, method = model_of(base), made(OCCASION)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    return Training(model, method, frozen, trace(base, model, method))


def frozen_weights_keep_their_bits(done: Training) -> None:
    first, last = done.steps[0].parameters, done.steps[-1].parameters
    assert done.frozen
    assert all(torch.equal(first[name], last[name]) for name in done.frozen)


def only_what_is_frozen_at_the_start_stays(done: Training, frozen: set[str]) -> None:
    first, last = done.steps[0].parameters, done.steps[-1].parameters
    for a, b in factor_names(done.model).values():
        for factor, name in (("a", a), ("b", b)):
            assert torch.equal(first[name], last[name]) == (factor in frozen)


def dense_tensors_take_every_step(done: Training) -> None:
    names = dense_names(done.model)
    assert names
    for earlier, later in pairwise(done.steps):
        assert all(not torch.equal(earlier.parameters[name], later.parameters[name]) for name in names)


def ranks_never_grow(done: Training, *, prunes: bool) -> None:
    ranks = {pair.path: pair.rank for pair in lora_pairs(done.model)}
    kept = done.method.kept_ranks(done.model, ranks)
    assert kept.keys() == ranks.keys()
    assert all(1 <= kept[path] <= rank for path, rank in ranks.items())
    assert prunes == (dict(kept) != ranks)


def the_same_occasion_gives_the_same_bits(done: Training, base: BaseModel, made: Make) -> None:
    before = torch.get_rng_state()
    assert same_bits(done.steps[-1].parameters, trained(base, made))
    assert torch.equal(before, torch.get_rng_state())


def only_what_draws_looks_at_the_seed(base: BaseModel, made: Make, *, draws: bool) -> None:
    other = Occasion(seed=OCCASION.seed + 1, round_index=OCCASION.round_index)
    assert same_bits(trained(base, made), trained(base, made, occasion=other)) == (not draws)


def beside_plain_lora_nothing_changes(base: BaseModel, made: Make) -> None:
    def beside(occasion):
        return Together(occasion, [plain(occasion), made(occasion), plain(occasion)])

    assert same_bits(trained(base, made), trained(base, beside))


def the_penalty_leaves_the_model_alone(base: BaseModel, made: Make) -> None:
    model = model_of(base)
    method = made(OCCASION)
    method.start(model)
    before = copy.deepcopy(model.state_dict())
    penalty = method.penalty(model, loss_of(model, base.spec.kind))
    assert penalty is None or (penalty.shape == () and math.isfinite(penalty.item()))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(getattr(pair.reader, pair.attribute) is pair.a for pair in lora_pairs(model))


def the_gradient_is_the_slope_of_the_penalty(base: BaseModel, made: Make) -> None:
    # In float64, along one direction in which every trained tensor moves; the method is made anew for each value, so
    # that what it draws is drawn again. A copy, because a model shares its frozen weights with the base.
    model = copy.deepcopy(model_of(base)).double()
    loss = loss_of(model, base.spec.kind)
    method = made(OCCASION)
    method.start(model)
    trained_tensors = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(5)
    ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in trained_tensors]
    _move(trained_tensors, ways, 0.01)  # off the point where the distance to what was received is zero
    penalty = method.penalty(model, loss)
    if penalty is None:
        return
    gradients = torch.autograd.grad(penalty, trained_tensors, allow_unused=True)
    slope = sum(float((g * w).sum()) for g, w in zip(gradients, ways, strict=True) if g is not None)
    assert abs(slope) > 1e-9
    assert math.isclose(slope, _slope(base, model, made, (trained_tensors, ways)), rel_tol=1e-4)


def _slope(base, model, made, moves, width=1e-5):
    trained_tensors, ways = moves
    values = []
    _move(trained_tensors, ways, -0.01)
    for distance in (0.01 + width, 0.01 - width):
        method = made(OCCASION)
        method.start(model)
        _move(trained_tensors, ways, distance)
        values.append(method.penalty(model, loss_of(model, base.spec.kind)).item())
        _move(trained_tensors, ways, -distance)
    return (values[0] - values[1]) / (2 * width)


@torch.no_grad()
def _move(tensors, ways, distance):
    for tensor, way in zip(tensors, ways, strict=True):
        tensor.add_(way, alpha=distance)


def penalties_add_up(base: BaseModel, made: Make) -> None:
    model = model_of(base)
    others = (made, make("hetlora_prune"), make("rm_lora"))
    alone, both = [method(OCCASION) for method in others], Together(OCCASION, [method(OCCASION) for method in others])
    for method in (*alone, both):
        method.start(model)
    loss = loss_of(model, base.spec.kind)
    parts = [0.0 if (p := method.penalty(model, loss)) is None else p.item() for method in alone]
    total = both.penalty(model, loss)
    assert total is not None
    assert math.isclose(total.item(), math.fsum(parts), rel_tol=1e-5)
