"""Small adapted models of every layer kind, real trainings of some steps, and what each step left behind."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from peft import PeftModel

from tasks.adapters.lora import LoraAdapter
from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.lora import PlainLora
from tasks.local_methods.pairs import lora_pairs
from tasks.local_methods.table import local_method
from tasks.local_methods.together import Together
from tasks.training.adaptation import LoraSpec, adapt, adapted_modules, initial_adapter, load_adapter
from tasks.training.loop import TrainingSpec, train
from tasks.training.models import BaseModel
from tests.strategies import normal
from tests.training.pico import examples_of

# Linear layers with trained biases, convolutions, and an embedding beside a head that is trained whole.
LORA = {
    "mlp": LoraSpec(bias="all"),
    "cnn": LoraSpec(bias="all"),
    "sequence_classification": LoraSpec(target_modules=("query", "word_embeddings")),
}
OCCASION = Occasion(seed=3, round_index=1)
SPEC = TrainingSpec(batch_size=8, learning_rate=0.01, device="cpu", precision="fp32", max_steps=3)

Make = Callable[[Occasion], LocalMethod]


def make(name: str, **values) -> Make:
    """Return what makes a row's method under these options."""
    return lambda occasion: local_method(name).method(occasion, values)


def adapter_of(base: BaseModel, rank: int = 4, *, lora: LoraSpec | None = None) -> LoraAdapter:
    """Return an adapter neither of whose factors is zero anywhere."""
    lora = LORA[base.spec.kind] if lora is None else lora
    start = initial_adapter(base, lora, dict.fromkeys(adapted_modules(base, lora), rank), seed=1)
    pairs = {
        path: replace(p, a=normal(p.a.shape, 2 * i, scale=0.3), b=normal(p.b.shape, 2 * i + 1, scale=0.3))
        for i, (path, p) in enumerate(start.pairs.items())
    }
    return LoraAdapter(pairs, start.dense)


def model_of(base: BaseModel, adapter: LoraAdapter | None = None, *, lora: LoraSpec | None = None) -> PeftModel:
    """Return a model of its own that holds an adapter, by default one of rank 4."""
    lora = LORA[base.spec.kind] if lora is None else lora
    adapter = adapter_of(base, lora=lora) if adapter is None else adapter
    model = adapt(base, lora, adapter.ranks, seed=1)
    load_adapter(model, adapter)
    return model


def loss_of(model: PeftModel, kind: str) -> Callable[[], torch.Tensor]:
    """Return the loss of a fixed batch."""
    batch = examples_of(kind).batch(np.arange(8))
    dtype = next(model.parameters()).dtype
    batch = {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items()}
    return lambda: model.get_base_model()(**batch).loss


@dataclass(frozen=True)
class Snapshot:
    """A model and what its optimizer remembered, after a step; position 0 is before the first."""

    parameters: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]


class Recorder(LocalMethod):
    """Copies everything after every step."""

    def __init__(self, occasion) -> None:
        super().__init__(occasion)
        self.snapshots: list[Snapshot] = []

    def start(self, model):
        self.snapshots.append(Snapshot(_copies(model), {}))

    def after_step(self, model, optimizer, step):
        moments = {
            name: {key: t.clone() for key, t in optimizer.state.get(p, {}).items() if torch.is_tensor(t) and t.ndim}
            for name, p in model.named_parameters()
        }
        self.snapshots.append(Snapshot(_copies(model), moments))


def _copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trace(
    base: BaseModel, model: PeftModel, method: LocalMethod, spec: TrainingSpec = SPEC, occasion: Occasion = OCCASION
) -> list[Snapshot]:
    """Train for real and return what every step left behind."""
    recorder = Recorder(occasion)
    both = Together(occasion, [method, recorder])
    train(model, examples_of(base.spec.kind), np.arange(24), spec, seed=0, method=both)
    return recorder.snapshots


def trained(base: BaseModel, made: Make, spec: TrainingSpec = SPEC, occasion: Occasion = OCCASION) -> dict:
    """Return a fresh model's parameters after a training."""
    return trace(base, model_of(base), made(occasion), spec, occasion)[-1].parameters


def plain(occasion: Occasion) -> LocalMethod:
    """Make plain LoRA."""
    return PlainLora(occasion)


def factor_names(model: PeftModel) -> dict[str, tuple[str, str]]:
    """Return module path -> the names of its `a` and `b` among the model's parameters."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {pair.path: (names[id(pair.a)], names[id(pair.b)]) for pair in lora_pairs(model)}


def dense_names(model: PeftModel) -> list[str]:
    """Return the names of what is trained beside the factors."""
    factors = {name for both in factor_names(model).values() for name in both}
    return [name for name, p in model.named_parameters() if p.requires_grad and name not in factors]


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Tell whether two models' parameters are equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
