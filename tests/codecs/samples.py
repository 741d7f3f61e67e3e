"""What the codec tests share: an adapter with a bit of everything, neighbours of adapters, and adapters as vectors."""

from dataclasses import replace

import torch

from tasks.adapters.lora import LayerForm, LoraAdapter, LoraPair, fold_scaling
from tasks.adapters.peft_files import to_state_dict
from tasks.codecs.codec import Trip
from tests.strategies import normal, pair_of

TRIP = Trip(round_index=3, seed=11)
EXAMPLE = LoraAdapter(
    {"layers.0": pair_of(LayerForm("linear", (40,)), 50, 4, seed=1, scaling=2.0)},
    {"head.bias": normal((3,), 5), "norm.num_batches_tracked": torch.tensor(2**40 + 1)},
)
MIXED = LoraAdapter(
    {
        "conv": pair_of(LayerForm("conv", (2, 3, 3), (1, 1)), 6, 3, seed=2, scaling=0.5),
        "embed": pair_of(LayerForm("embedding", (9,)), 5, 1, seed=4),
        "layers.0": pair_of(LayerForm("linear", (30,)), 20, 4, seed=6),
    },
    {"head.weight": normal((4, 20), 8), "seen": torch.tensor([1, 2], dtype=torch.int32), "step": torch.tensor(7)},
)


def near(adapter: LoraAdapter, seed: int, scale: float = 1e-3) -> LoraAdapter:
    """Return an adapter of the same layout whose numbers differ a little; scaling 1, counters one further."""
    pairs: dict[str, LoraPair] = {}
    for i, (path, pair) in enumerate(fold_scaling(adapter).pairs.items()):
        a, b = (t + normal(t.shape, seed + 2 * i + j, scale=scale).to(t.dtype) for j, t in enumerate((pair.a, pair.b)))
        pairs[path] = replace(pair, a=a, b=b)
    dense = {
        name: t + normal(t.shape, seed + 99, scale=scale).to(t.dtype) if t.is_floating_point() else t + 1
        for name, t in adapter.dense.items()
    }
    return LoraAdapter(pairs, dense)


def vector(adapter: LoraAdapter) -> torch.Tensor:
    """Return all floating numbers of an adapter, scaling folded, in float64."""
    found = to_state_dict(fold_scaling(adapter)).values()
    return torch.cat(
        [torch.zeros(0, dtype=torch.float64), *(t.double().reshape(-1) for t in found if t.dtype.is_floating_point)]
    )


def one_tensor(values: torch.Tensor) -> LoraAdapter:
    """Return an adapter that holds one dense tensor alone."""
    return LoraAdapter({}, {"head": values})
