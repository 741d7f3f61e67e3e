"""FlexLoRA against worked numbers, and the decay it is known for; its general laws are in `test_laws`."""

import pytest
import torch

from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.products import dense_product, spectrum
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.shares import living_prefix
from tests.aggregators.cases import F1_A, F1_B, F1_WEIGHTS, by_oracle, client, f1, f64, mixed_cohort
from tests.oracles.flexlora import flexlora as oracle
from tests.strategies import normal


def ladder(rank: int, *, dim: int = 12) -> LoraAdapter:
    """Build a layer whose slots are orthogonal, balanced and of clearly falling strength."""
    left, _ = torch.linalg.qr(normal((dim, rank), 1, dtype=torch.float64))
    right, _ = torch.linalg.qr(normal((dim, rank), 2, dtype=torch.float64))
    root = torch.arange(2 * rank, rank, -1, dtype=torch.float64).sqrt()
    return LoraAdapter({"m": LoraPair(root[:, None] * right.T, left * root)})


@pytest.mark.parametrize(
    ("scales", "target"), [((1.0, 1.0), [[4.5, 6], [11.5, 14]]), ((2.0, 0.5), [[3.375, 5.25], [7.25, 10]])]
)
def test_flexlora_gives_the_worked_target(scales: tuple[float, float], target: list[list[float]]):
    pair = aggregate("flexlora", f1(scales), F1_WEIGHTS).pairs["m"]
    torch.testing.assert_close(dense_product(pair), f64(target), rtol=0, atol=1e-12)


def test_flexlora_gives_the_worked_spectrum_and_rank_one_share():
    result = aggregate("flexlora", f1(), F1_WEIGHTS)
    assert spectrum(result.pairs["m"]).tolist() == pytest.approx([19.606283, 0.306024], abs=5e-7)
    share = dense_product(living_prefix(result, {"m": 1}).pairs["m"])
    expected = f64([[4.719669, 5.821921], [11.409129, 14.073667]])
    torch.testing.assert_close(share, expected, rtol=0, atol=5e-7)
    missed = torch.linalg.matrix_norm(f64([[4.5, 6], [11.5, 14]]) - share)
    assert float(missed) == pytest.approx(0.306024, abs=5e-7)


def test_oracle_gives_the_worked_numbers():
    clients = [(a, b, 1.0) for a, b in zip(F1_A, F1_B, strict=True)]
    torch.testing.assert_close(f64(oracle(clients, F1_WEIGHTS)), f64([[4.5, 6], [11.5, 14]]))


def test_error_is_the_tail_of_the_spectrum_and_no_factor_average_is_closer():
    updates, weights = mixed_cohort(3)
    mean = by_oracle("flora_stack", updates, weights).dense["layers.0.product"]
    errors = {
        name: float((dense_product(aggregate(name, updates, weights).pairs["layers.0"]) - mean).square().sum())
        for name in ("flexlora", "rbla", "zero_pad", "raflora")
    }
    low = [LoraAdapter({p: LoraPair(v.a[:1], v.b[:, :1]) for p, v in u.pairs.items()}) for u in updates]
    cut = dense_product(living_prefix(aggregate("flexlora", updates, weights), {"layers.0": 1}).pairs["layers.0"])
    tail = torch.linalg.svdvals(mean)[4:].square().sum()
    assert errors["flexlora"] == pytest.approx(float(tail), abs=1e-20)
    assert errors["flexlora"] < min(errors[name] for name in ("rbla", "zero_pad", "raflora"))
    other = dense_product(aggregate("rbla", low, weights).pairs["layers.0"])
    assert (cut - mean).norm() < (other - mean).norm()


def test_tall_layers_go_through_small_cores_and_agree_with_the_dense_svd():
    updates = [client({"m": rank}, 10 * rank, dtype=torch.float64, sizes=(60, 45)) for rank in (2, 5, 3)]
    result = aggregate("flexlora", updates, [3.0, 1.0, 2.0])
    exact = by_oracle("flexlora", updates, [3.0, 1.0, 2.0]).dense["m.product"]
    torch.testing.assert_close(dense_product(result.pairs["m"]), exact, rtol=0, atol=1e-10)
    sigma = torch.linalg.svdvals(exact)[:5]
    torch.testing.assert_close(spectrum(result.pairs["m"]), sigma, rtol=0, atol=1e-10 * float(sigma[0]))


def test_ten_noop_rounds_shrink_slots_by_the_documented_ratios():
    first = ladder(9)
    now = first
    for _ in range(10):
        returned = [living_prefix(now, {"m": rank}) for rank in (2, 5, 9)]
        now = aggregate("flexlora", returned, [0.2, 0.3, 0.5], previous=now)
    ratios = (spectrum(now.pairs["m"]) / spectrum(first.pairs["m"])).tolist()
    assert ratios == pytest.approx([1.0] * 2 + [0.1074] * 3 + [0.00098] * 4, rel=4e-3)


def test_energy_threshold_keeps_the_fewest_slots_that_hold_it():
    updates = [ladder(4)]
    energies = spectrum(updates[0].pairs["m"]).square()
    share = float(energies[:2].sum() / energies.sum())
    for energy, kept in ((share - 1e-6, 2), (share + 1e-6, 3), (0.01, 1), (1.0, 4)):
        result = aggregate("flexlora", updates, [1.0], options={"energy": energy})
        assert result.ranks == {"m": kept}


def test_energy_threshold_makes_no_dead_slots():
    updates = [LoraAdapter({"m": LoraPair(normal((6, 3), 1), normal((4, 6), 2))})]
    assert aggregate("flexlora", updates, [1.0]).ranks == {"m": 6}
    pair = aggregate("flexlora", updates, [1.0], options={"energy": 0.999999}).pairs["m"]
    assert pair.rank <= 3
    assert bool(pair.a.any(dim=1).all())


def test_rank_never_falls_below_the_previous_one():
    old = client({"m": 4}, 1)
    result = aggregate("flexlora", [client({"m": 2}, 2)], [1.0], previous=old)
    assert result.ranks == {"m": 4}
    assert not result.pairs["m"].a[2:].any()
