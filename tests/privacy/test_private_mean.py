"""The private mean: the plain mean where nothing hides, and the noise it says where something does."""

import math
import pickle
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.aggregators import ordered
from tasks.aggregators.ordered import BLOCK
from tasks.errors import AdapterShapeError, ConfigError, FoldOrderError, InvalidWeightError, NonFiniteUpdateError
from tasks.privacy.clipping import Factors
from tasks.privacy.private_mean import PrivateMean, private_mean
from tests.aggregators.cases import client, same_bits
from tests.privacy.oracles import clipped_mean
from tests.strategies import normal

OLD = client({"m": 4, "n": 2}, 3, dense={"head": normal((3, 2), 8), "seen": torch.tensor(7)})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def mean(
    previous: LoraAdapter = OLD,
    *,
    expected: float = 4.0,
    clip: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
    noised: Factors = "both",
) -> PrivateMean:
    return private_mean(
        previous, expected_clients=expected, clip_norm=clip, noise_multiplier=noise, entropy=rng(seed), noised=noised
    )


def returned(seed: int, ranks: dict[str, int] | None = None, *, size: float = 0.3) -> LoraAdapter:
    """Return the share of a client that has learnt something."""
    share = prefix(OLD, ranks or {"m": 1 + seed % 4, "n": 1 + seed % 2})
    pairs = {
        p: LoraPair(x.a + size * normal(x.a.shape, seed), x.b + size * normal(x.b.shape, seed + 1), x.scaling, x.form)
        for p, x in share.pairs.items()
    }
    return LoraAdapter(pairs, {"head": share.dense["head"] + size, "seen": torch.tensor(seed)})


def folded(fold: PrivateMean, updates: Iterable[LoraAdapter], positions: Iterable[int] | None = None) -> PrivateMean:
    for position, update in zip(positions or range(10**6), updates, strict=False):
        fold.add(position, update, 1.0 + position)
    return fold


def factors(adapter: LoraAdapter, path: str) -> tuple[np.ndarray, np.ndarray]:
    pair = adapter.pairs[path]
    return pair.a.double().numpy(), pair.b.double().numpy() * pair.scaling


@settings(derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    clip=st.sampled_from((0.1, 3.0, math.inf)),
    scaling=st.sampled_from((1.0, 0.5, 8.0)),
)
def test_without_noise_it_is_the_mean_of_padded_clipped_changes(
    seed: int, ranks: list[int], clip: float, scaling: float
):
    def pair(rank: int, of: int) -> LoraAdapter:
        return LoraAdapter({"m": LoraPair(normal((rank, 5), of), normal((4, rank), of + 1), scaling)})

    old, updates = pair(5, seed), [pair(rank, seed + 10 * k) for k, rank in enumerate(ranks, start=1)]
    result = folded(mean(old, expected=float(len(ranks)), clip=clip), updates).finish(old)
    expected = clipped_mean(factors(old, "m"), [factors(u, "m") for u in updates], clip, len(ranks))
    assert result.pairs["m"].scaling == 1.0
    for got, wanted in zip(factors(result, "m"), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_denominator_is_what_was_expected_and_not_who_came():
    moves = [
        folded(mean(expected=4.0, clip=math.inf), [returned(1)] * count).finish(None).dense["head"] - OLD.dense["head"]
        for count in (1, 2)
    ]
    torch.testing.assert_close(moves[0], torch.full((3, 2), 0.3 / 4))
    torch.testing.assert_close(moves[1], 2 * moves[0])


@settings(derandomize=True, max_examples=25)
@given(seed=st.integers(0, 1000), size=st.sampled_from((0.01, 1.0, 1e6)), clip=st.floats(0.01, 5.0))
def test_one_client_more_moves_the_sum_by_at_most_the_clipping_norm(seed: int, size: float, clip: float):
    others = [returned(k) for k in range(3)]
    results = [
        folded(mean(expected=1.0, clip=clip), cohort).finish(None)
        for cohort in (others, [*others, returned(seed, size=size)])
    ]
    squares = [
        ((x - y).double() ** 2).sum()
        for one, two in [[r.pairs for r in results]]
        for path in one
        for x, y in ((one[path].a, two[path].a), (one[path].b, two[path].b))
    ]
    dense = ((results[0].dense["head"] - results[1].dense["head"]).double() ** 2).sum()
    assert float(sum(squares) + dense) ** 0.5 <= clip * (1 + 1e-6) + 1e-5


def test_weights_given_do_not_count():
    by_weight = []
    for weights in ((1.0, 1.0), (1e-3, 500.0)):
        fold = mean()
        for position, weight in enumerate(weights):
            fold.add(position, returned(position), weight)
        by_weight.append(fold.finish(OLD))
    assert same_bits(*by_weight)


def test_a_round_in_which_nobody_learns_changes_nothing():
    shares = [prefix(OLD, {"m": rank, "n": 1}) for rank in (1, 4, 2)]
    assert same_bits(folded(mean(expected=7.0), shares).finish(OLD), OLD)


@pytest.mark.parametrize("noised", ["both", "a", "b"])
def test_noise_has_the_spread_it_says_in_every_slot_and_nowhere_else(noised: Factors):
    old = client({"m": 6}, 1, sizes=(700, 500), dense={"head": torch.zeros(3000)}, dtype=torch.float64)
    fold = mean(old, expected=8.0, clip=0.5, noise=3.0, noised=noised)
    assert fold.release.noise_std == 3.0 * 0.5 / 8.0
    # The one client owns one slot of six; the others get the same noise.
    result = folded(fold, [prefix(old, {"m": 1})]).finish(old)
    pair, before = result.pairs["m"], old.pairs["m"]
    moved = {"a": pair.a - before.a, "b": pair.b - before.b}
    parts = {f"{name} {slot}": t.select(int(name == "b"), slot) for name, t in moved.items() for slot in (0, 5)}
    for name, part in [*parts.items(), ("head", result.dense["head"])]:
        if name != "head" and noised not in ("both", name[0]):
            assert not part.any()
            continue
        low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], df=part.numel())
        assert low < float((part**2).sum()) / fold.release.noise_std**2 < high
        assert stats.kstest(part.flatten().numpy() / fold.release.noise_std, "norm").pvalue > 1e-4


def test_a_factor_that_is_not_sent_stays_whatever_updates_hold():
    result = folded(mean(noised="b", clip=math.inf), [returned(1), returned(2)]).finish(OLD)
    assert torch.equal(result.pairs["m"].a, OLD.pairs["m"].a)
    assert not torch.equal(result.pairs["m"].b, OLD.pairs["m"].b)
    # A change of the factor that stays must not use up the room that the other one has under the norm.
    far = returned(1)
    far.pairs["m"].a.mul_(1e6)
    near = returned(1)
    both = [folded(mean(noised="b"), [update]).finish(OLD) for update in (far, near)]
    assert torch.equal(both[0].pairs["m"].b, both[1].pairs["m"].b)


def test_counters_stay_what_they_were():
    assert folded(mean(noise=1.0), [returned(5)]).finish(OLD).dense["seen"] == 7


def test_an_empty_round_looks_like_one_in_which_nobody_learnt():
    nobody = mean(noise=1.0, seed=4).finish(OLD)
    idle = folded(mean(noise=1.0, seed=4), [prefix(OLD, {"m": 2, "n": 2})]).finish(OLD)
    assert same_bits(nobody, idle)
    assert not torch.equal(nobody.pairs["m"].a, OLD.pairs["m"].a)


def test_noise_comes_from_the_generator_alone():
    results = [folded(mean(noise=1.0, seed=seed), [returned(1)]).finish(OLD) for seed in (1, 1, 2)]
    assert same_bits(results[0], results[1])
    assert not torch.equal(results[0].pairs["m"].a, results[2].pairs["m"].a)


@settings(derandomize=True, max_examples=20)
@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
def test_result_does_not_depend_on_arrival_or_cut(order: list[int], seed: int):
    updates = [returned(seed + k) for k in range(18)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "BLOCK", 4)
        in_order = folded(mean(noise=0.5), updates).finish(OLD)
        first, *rest = order
        whole = folded(mean(noise=0.5), updates[4 * first : 4 * first + 4], range(4 * first, 18))
        for block in rest:
            whole.merge(folded(mean(noise=0.5), updates[4 * block : 4 * block + 4], range(4 * block, 18)))
        assert same_bits(whole.finish(OLD), in_order)


def test_fold_travels_between_processes():
    left, right = folded(mean(noise=1.0), [returned(1)]), folded(mean(noise=1.0), [returned(2)], [BLOCK])
    left.merge(pickle.loads(pickle.dumps(right)))  # noqa: S301 - our own bytes
    together = folded(mean(noise=1.0), [returned(1), returned(2)], [0, BLOCK]).finish(OLD)
    assert same_bits(left.finish(OLD), together)


def test_inputs_are_never_written_to():
    update, copy = returned(3), returned(3)
    before = pickle.dumps(OLD)
    folded(mean(noise=1.0), [update]).finish(OLD)
    assert same_bits(update, copy)
    assert same_bits(OLD, pickle.loads(before))  # noqa: S301 - our own bytes


def test_noise_is_drawn_once():
    for fold in (mean(noise=1.0), folded(mean(noise=1.0), [returned(1)])):
        fold.finish(OLD)
        with pytest.raises(FoldOrderError, match="drawn already"):
            fold.finish(OLD)
    left, right = mean(noise=1.0), mean(noise=1.0)
    left.merge(right)
    with pytest.raises(FoldOrderError, match="merged away"):
        right.finish(OLD)


def test_another_global_adapter_is_refused():
    other = client({"m": 4, "n": 2}, 4, dense=OLD.dense)
    with pytest.raises(FoldOrderError, match="another global adapter"):
        mean().finish(other)
    with pytest.raises(FoldOrderError, match="another global adapter"):
        mean().merge(mean(other))
    with pytest.raises(FoldOrderError, match="another method"):
        folded(mean(clip=1.0), [returned(1)]).merge(folded(mean(clip=2.0), [returned(2)], [BLOCK]))


def test_refused_update_leaves_the_fold_as_it_was():
    fold = folded(mean(), [returned(1)])
    bad = returned(2)
    bad.dense["head"][0, 0] = math.nan
    with pytest.raises(NonFiniteUpdateError, match="update 1, tensor head"):
        fold.add(1, bad, 1.0)
    with pytest.raises(AdapterShapeError, match="update 1, module m"):
        fold.add(1, client({"m": 9, "n": 1}, 1), 1.0)
    with pytest.raises(InvalidWeightError):
        fold.add(1, returned(2), 0.0)
    assert same_bits(fold.finish(OLD), folded(mean(), [returned(1)]).finish(OLD))


@pytest.mark.parametrize(
    "change", [{"expected": 0.0}, {"clip": 0.0}, {"clip": math.nan}, {"noise": -1.0}, {"clip": math.inf, "noise": 1.0}]
)
def test_numbers_out_of_bounds_are_refused(change: dict[str, float]):
    with pytest.raises(ConfigError, match="private mean"):
        mean(**change)  # type: ignore[arg-type]


def test_a_scalar_that_is_trained_whole_is_noised_like_any_other():
    before = LoraAdapter({"m": LoraPair(normal((2, 3), 1), normal((4, 2), 2))}, {"scale": torch.tensor(2.0)})
    fold = private_mean(
        before, expected_clients=1, clip_norm=1.0, noise_multiplier=1.0, entropy=np.random.default_rng(0)
    )
    made = fold.finish(before)
    assert made.dense["scale"].shape == ()
    assert made.dense["scale"] != 2.0
