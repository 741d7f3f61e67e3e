"""FedAvg of factors: worked numbers and its refusal of mixed ranks; its general laws are in `test_laws`."""

import pytest
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.fedavg import fedavg as start
from tasks.errors import MixedRanksError
from tests.aggregators.cases import F1_A, F1_B, F1_WEIGHTS, client, f1
from tests.oracles.fedavg import fedavg


def test_fedavg_gives_the_worked_numbers():
    level = [prefix(u, {"m": 1}) for u in f1()]
    pair = aggregate("fedavg", level, F1_WEIGHTS).pairs["m"]
    assert pair.a.tolist() == [[4.0, 5.0]]
    assert pair.b.tolist() == [[1.5], [1.0]]


def test_oracle_gives_the_worked_numbers():
    clients = [(a[:1], [row[:1] for row in b], 1.0) for a, b in zip(F1_A, F1_B, strict=True)]
    assert fedavg(clients, F1_WEIGHTS) == ([[4.0, 5.0]], [[1.5], [1.0]])


def test_product_misses_the_target_by_the_covariance_of_the_factors():
    updates = [client({"m": 2}, seed, dtype=torch.float64) for seed in (1, 2, 3)]
    shares = [0.5, 0.3, 0.2]
    mean = aggregate("fedavg", updates, shares).pairs["m"]
    pairs: list[LoraPair] = [u.pairs["m"] for u in updates]
    target = sum((w * p.b @ p.a for w, p in zip(shares, pairs, strict=True)), torch.zeros(4, 5).double())
    covariance = sum(
        (w * (p.b - mean.b) @ (p.a - mean.a) for w, p in zip(shares, pairs, strict=True)),
        torch.zeros(4, 5).double(),
    )
    torch.testing.assert_close(target - mean.b @ mean.a, covariance)


def test_mixed_ranks_error_names_module_and_ranks():
    updates = [client({"m": 2, "n": rank}, rank) for rank in (4, 1, 4)]
    with pytest.raises(MixedRanksError, match=r"module n: .*ranks 1, 4.*rbla"):
        aggregate("fedavg", updates, [1.0, 1.0, 1.0])


def test_ranks_may_differ_between_modules():
    updates = [client({"m": 2, "n": 5}, seed) for seed in (1, 2)]
    assert aggregate("fedavg", updates, [1.0, 2.0]).ranks == {"m": 2, "n": 5}


def test_mixed_ranks_are_refused_across_blocks_too():
    left, right = start(), start()
    left.add(0, LoraAdapter({"m": f1()[0].pairs["m"]}), 1.0)
    right.add(64, LoraAdapter({"m": f1()[1].pairs["m"]}), 1.0)
    left.merge(right)
    with pytest.raises(MixedRanksError):
        left.finish(None)
