from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from tasks.adapters.admission import admit
from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair
from tasks.errors import UpdateRefusedError
from tests.strategies import adapters, normal, pair_of

laws = settings(max_examples=30, derandomize=True)
SHARE = LoraAdapter(
    {
        "m": pair_of(LayerForm("conv", (2, 3, 3), (1, 1)), 5, 2, seed=1),
        "n": pair_of(LayerForm("linear", (4,)), 6, 3, seed=2),
    },
    {"head.weight": normal((2, 5), 3), "norm.counter": torch.tensor(7)},
)


def with_pair(path: str, change: Callable[[LoraPair], LoraPair]) -> LoraAdapter:
    return LoraAdapter({**SHARE.pairs, path: change(SHARE.pairs[path])}, SHARE.dense)


def with_dense(name: str, tensor: torch.Tensor) -> LoraAdapter:
    return LoraAdapter(SHARE.pairs, {**SHARE.dense, name: tensor})


def without(adapter: LoraAdapter, name: str) -> LoraAdapter:
    return LoraAdapter(
        {path: pair for path, pair in adapter.pairs.items() if path != name},
        {key: tensor for key, tensor in adapter.dense.items() if key != name},
    )


def poisoned(tensor: torch.Tensor, value: float) -> torch.Tensor:
    copy = tensor.clone()
    copy.view(-1)[0] = value
    return copy


REFUSED = {
    "a module is missing": (without(SHARE, "n"), "missing-tensor"),
    "a dense tensor is missing": (without(SHARE, "head.weight"), "missing-tensor"),
    "a module is new": (LoraAdapter({**SHARE.pairs, "extra": SHARE.pairs["n"]}, SHARE.dense), "unknown-tensor"),
    "a dense tensor is new": (with_dense("backdoor", torch.ones(1)), "unknown-tensor"),
    "the rank is smaller": (with_pair("n", lambda p: replace(p, a=p.a[:2], b=p.b[:, :2])), "wrong-rank"),
    "the rank is larger": (
        with_pair("n", lambda p: replace(p, a=torch.cat([p.a, p.a]), b=torch.cat([p.b, p.b], dim=1))),
        "wrong-rank",
    ),
    "inputs differ": (with_pair("n", lambda p: LoraPair(p.a[:, :3], p.b)), "wrong-shape"),
    "outputs differ": (with_pair("n", lambda p: replace(p, b=p.b[:5])), "wrong-shape"),
    "the kernel differs": (
        with_pair("m", lambda p: replace(p, form=LayerForm("conv", (2, 9, 1), (1, 1)))),
        "wrong-shape",
    ),
    "a dense shape differs": (with_dense("head.weight", torch.ones(5, 2)), "wrong-shape"),
    "a factor is whole numbers": (with_pair("n", lambda p: replace(p, a=p.a.long())), "wrong-dtype"),
    "a head is whole numbers": (with_dense("head.weight", torch.ones(2, 5, dtype=torch.long)), "wrong-dtype"),
    "a counter is a float": (with_dense("norm.counter", torch.tensor(7.0)), "wrong-dtype"),
    "a factor holds NaN": (with_pair("n", lambda p: replace(p, b=poisoned(p.b, float("nan")))), "non-finite"),
    "a factor holds infinity": (with_pair("m", lambda p: replace(p, a=poisoned(p.a, float("inf")))), "non-finite"),
    "a head holds NaN": (with_dense("head.weight", poisoned(SHARE.dense["head.weight"], float("nan"))), "non-finite"),
    "a value overflows the share's dtype": (
        with_pair("n", lambda p: replace(p, a=poisoned(p.a.double(), 1e300))),
        "non-finite",
    ),
    "a scaling overflows": (with_pair("n", lambda p: replace(p, scaling=float("inf"))), "non-finite"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_update_is_refused_when(what):
    update, reason = REFUSED[what]
    with pytest.raises(UpdateRefusedError, match="client c07, round 3") as refusal:
        admit(update, SHARE, subject="client c07, round 3")
    assert refusal.value.reason == reason


@laws
@given(adapters())
def test_update_of_the_share_s_shape_is_admitted_folded(adapter):
    admitted = admit(adapter, adapter, subject="client c01, round 1")
    assert admitted.ranks == adapter.ranks
    for path, pair in admitted.pairs.items():
        assert pair.scaling == 1.0
        assert torch.equal(pair.a, adapter.pairs[path].a)
        assert torch.equal(pair.b, adapter.pairs[path].b * adapter.pairs[path].scaling)


def test_admitted_update_has_the_share_s_dtypes():
    update = LoraAdapter(
        {path: replace(pair, a=pair.a.half(), b=pair.b.double()) for path, pair in SHARE.pairs.items()},
        {**SHARE.dense, "head.weight": SHARE.dense["head.weight"].bfloat16()},
    )
    admitted = admit(update, SHARE, subject="client c01, round 1")
    assert {t.dtype for pair in admitted.pairs.values() for t in (pair.a, pair.b)} == {torch.float32}
    assert {name: t.dtype for name, t in admitted.dense.items()} == {
        "head.weight": torch.float32,
        "norm.counter": torch.int64,
    }
