"""Bytes as the papers and part 7.1 of our notes count them, and what our messages really take beside them."""

import numpy as np
import pytest
import torch

from tasks.adapters.lora import LayerForm, LoraAdapter
from tasks.codecs.positions import as_bitmap, as_entropy, as_gaps
from tasks.codecs.table import wire
from tests.codecs.samples import TRIP, one_tensor
from tests.oracles.codecs import entropy
from tests.strategies import normal, pair_of

WIDTHS = (64, 128, 256, 512)


def convolutions(stages: int, blocks: int) -> list[tuple[int, int, int]]:
    """(inputs, outputs, kernel) of a CIFAR ResNet of width 64: ResNet-8 has 3 stages of 1 block, ResNet-18 4 of 2."""
    layers, inputs = [(3, 64, 3)], 64
    for outputs in WIDTHS[:stages]:
        for block in range(blocks):
            layers += [(inputs if block == 0 else outputs, outputs, 3), (outputs, outputs, 3)]
        layers += [(inputs, outputs, 1)] if inputs != outputs else []
        inputs = outputs
    return layers


def network(stages: int, blocks: int, rank: int) -> LoraAdapter:
    """What FLoCoRA trains: factors of every convolution, norm layers and the classifier."""
    layers = convolutions(stages, blocks)
    pairs = {
        f"conv{i:02d}": pair_of(LayerForm("conv", (inputs, k, k), (1, 1)), outputs, rank, seed=i)
        for i, (inputs, outputs, k) in enumerate(layers)
    }
    norms = {f"norm{i:02d}.{kind}": normal((layer[1],), i) for i, layer in enumerate(layers) for kind in ("w", "b")}
    classes = WIDTHS[stages - 1]
    return LoraAdapter(pairs, norms | {"fc.weight": normal((10, classes), 1), "fc.bias": normal((10,), 2)})


def parameters(adapter: LoraAdapter) -> list[torch.Tensor]:
    return [t for pair in adapter.pairs.values() for t in (pair.a, pair.b)] + list(adapter.dense.values())


def full_size(stages: int, blocks: int) -> int:
    layers = convolutions(stages, blocks)
    return sum(i * o * k * k + 2 * o for i, o, k in layers) + 10 * WIDTHS[stages - 1] + 10


def counted(adapter: LoraAdapter, bits: int) -> float:
    """FLoCoRA's own count: n * b + 64 * channels bits for what has two dimensions or more, floats for the rest."""
    quantised = [t for t in parameters(adapter) if t.ndim >= 2]
    rest = sum(4 * t.numel() for t in parameters(adapter) if t.ndim < 2)
    return rest + sum(t.numel() * bits / 8 + 8 * t.shape[0] for t in quantised)


def test_networks_have_the_papers_sizes():
    assert (full_size(3, 1), full_size(4, 2)) == (1_227_594, 11_173_962)
    small = sum(t.numel() for t in parameters(network(3, 1, 32)))
    assert small == 258_026
    assert sum(t.numel() for t in parameters(network(4, 2, 64))) == 2_306_122
    whole_first = small - 32 * (27 + 64) + 27 * 64  # their mode 3
    assert whole_first == 256_842
    assert round(1_227_594 / small, 2) == 4.76
    assert round(1_227_594 / whole_first, 2) == 4.78


@pytest.mark.parametrize(
    ("shape", "bits", "megabytes", "ratio"),
    [
        ((3, 1, 32), 8, 0.279, 17.6),
        ((3, 1, 32), 4, 0.152, 32.4),
        ((4, 2, 16), 8, 0.657, 68.0),
        ((4, 2, 32), 8, 1.233, 36.3),
        ((4, 2, 64), 8, 2.384, 18.75),
    ],
)
def test_flocora_s_ratios_and_our_messages_beside_them(shape, bits, megabytes, ratio):
    adapter, full = network(*shape), 4 * full_size(*shape[:2])
    assert counted(adapter, bits) / 1e6 == pytest.approx(megabytes, abs=6e-4)
    assert full / counted(adapter, bits) == pytest.approx(ratio, rel=2e-3)
    message, _ = wire("flocora", {"bits": bits}).encode(adapter, None, None, TRIP)
    # Ranges and zero points take 5 bytes rather than 8, codes are entropy-coded; the header adds about 2 kB.
    assert 0.75 * counted(adapter, bits) < len(message) < counted(adapter, bits)


@pytest.mark.parametrize(
    ("density", "bits", "by_index", "by_bitmap", "bound"),
    [
        (1 / 4, 32, 2.00, 3.56, 3.63),
        (1 / 4, 16, 2.67, 6.40, 6.65),
        (1 / 4, 8, 3.20, 10.7, 11.4),
        (1 / 16, 32, 8.0, 10.7, 13.7),
        (1 / 16, 16, 10.7, 16.0, 23.9),
        (1 / 16, 8, 12.8, 21.3, 38.2),
        (1 / 100, 32, 50.0, 24.2, 79.8),
        (1 / 100, 16, 66.7, 27.6, 133.0),
        (1 / 100, 8, 80.0, 29.6, 199.0),
    ],
)
def test_density_table(density, bits, by_index, by_bitmap, bound):
    size = 1 << 18
    places = np.sort(np.random.default_rng(1).permutation(size)[: int(density * size)])
    values = places.size * bits / 8

    def ratio(positions: float) -> float:
        return 4 * size / (values + positions)

    assert ratio(4 * places.size) == pytest.approx(by_index, rel=4e-3)
    assert ratio(len(as_bitmap(places, size))) == pytest.approx(by_bitmap, rel=6e-3)
    assert ratio(size * entropy(density) / 8) == pytest.approx(bound, rel=4e-3)
    assert len(as_gaps(places)) < 4 * places.size
    assert ratio(len(as_entropy(places, size))) == pytest.approx(bound, rel=0.01)

    update, share = one_tensor(normal((size,), 3)), one_tensor(torch.zeros(size))
    message, _ = wire("compact", {"keep": density, "bits": bits}).encode(update, share, None, TRIP)
    steps = 2 * places.size / 64 if bits == 8 else 0
    assert len(message) <= 1.01 * (4 * size / bound) + steps + 60


@pytest.mark.parametrize(("bits", "least"), [(8, 1.0), (4, 0.5)])
def test_one_step_per_rank_slot_costs_next_to_nothing(bits, least):
    pair = pair_of(LayerForm("linear", (1024,)), 1024, 16, seed=3)
    share, numbers = LoraAdapter({"q": pair}), 16 * 2048
    update = LoraAdapter({"q": type(pair)(pair.a + 0.1, pair.b * 2, 1.0, pair.form)})
    message, _ = wire("compact", {"bits": bits}).encode(update, share, None, TRIP)
    assert len(message) <= least * numbers + 2 * 2 * 16 + 60
