"""RBLA against worked numbers; its general laws are in `test_laws`."""

import pytest
import torch

from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair
from tasks.aggregators.cohort import aggregate
from tests.aggregators.cases import F1_A, F1_B, F1_WEIGHTS, f1
from tests.oracles.rbla import rbla
from tests.strategies import pair_of


def f64(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_rbla_gives_the_worked_numbers():
    pair = aggregate("rbla", f1(), F1_WEIGHTS).pairs["m"]
    assert torch.equal(pair.a, f64([[4, 5], [7, 8]]))
    assert torch.equal(pair.b, f64([[1.5, 0], [1, 2]]))
    assert torch.equal(pair.b @ pair.a, f64([[6, 7.5], [18, 21]]))


def test_rbla_gives_the_worked_numbers_under_unequal_scales():
    pair = aggregate("rbla", f1(scales=(2.0, 0.5)), F1_WEIGHTS).pairs["m"]
    assert torch.equal(pair.a, f64([[4, 5], [7, 8]]))
    assert torch.equal(pair.b, f64([[1.875, 0], [2, 1]]))


@pytest.mark.parametrize(
    ("scales", "target"), [((1.0, 1.0), [[4.5, 6], [11.5, 14]]), ((2.0, 0.5), [[3.375, 5.25], [7.25, 10]])]
)
def test_mean_of_single_client_products_is_the_worked_target(scales: tuple[float, float], target: list[list[float]]):
    alone = [aggregate("rbla", [u], [1.0]).pairs["m"] for u in f1(scales)]
    products = [pair.b @ pair.a for pair in alone]
    assert torch.equal(0.25 * products[0] + 0.75 * products[1], f64(target))


def test_oracle_gives_the_worked_numbers():
    clients = [(a, b, 1.0) for a, b in zip(F1_A, F1_B, strict=True)]
    assert rbla(clients, F1_WEIGHTS) == ([[4.0, 5.0], [7.0, 8.0]], [[1.5, 0.0], [1.0, 2.0]])


def test_slot_with_one_owner_is_the_owners_bit_for_bit():
    updates = f1(dtype=torch.float32)
    odd = LoraPair(updates[1].pairs["m"].a / 3, updates[1].pairs["m"].b / 7)
    pair = aggregate("rbla", [updates[0], LoraAdapter({"m": odd})], [0.3, 0.1]).pairs["m"]
    assert torch.equal(pair.a[1], odd.a[1])
    assert torch.equal(pair.b[:, 1], odd.b[:, 1])


@pytest.mark.parametrize(
    "form",
    [
        LayerForm("linear", (6,)),
        LayerForm("conv", (2, 3, 3), (1, 1)),
        LayerForm("conv", (3, 5), (1,)),
        LayerForm("embedding", (11,)),
    ],
)
def test_every_layer_kind_is_averaged_alike(form: LayerForm):
    clients = [pair_of(form, 4, rank, seed=rank, dtype=torch.float64, scaling=0.5) for rank in (1, 3, 2)]
    pair = aggregate("rbla", [LoraAdapter({"m": c}) for c in clients], [5.0, 1.0, 2.0]).pairs["m"]
    a, b = rbla([(c.a.tolist(), c.b.tolist(), c.scaling) for c in clients], [5.0, 1.0, 2.0])
    torch.testing.assert_close(pair.a, f64(a))
    torch.testing.assert_close(pair.b, f64(b))
    assert pair.form == form
