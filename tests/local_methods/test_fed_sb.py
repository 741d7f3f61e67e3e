"""Fed-SB in a client: the optimizer sees cores alone, and the model that comes out is a plain one."""

import numpy as np
import pytest
import torch

from tasks.adapters.core import core_of, core_start, frozen_b, leading_cores, stray_share
from tasks.adapters.lora import LoraAdapter, prefix
from tasks.adapters.thin import fill, thin
from tasks.aggregators.cohort import aggregate
from tasks.errors import ModelError, TrainingDivergedError
from tasks.local_methods.fed_sb import FedSb
from tasks.local_methods.hooks import LocalMethod
from tasks.local_methods.pairs import lora_pairs
from tasks.local_methods.together import Together
from tasks.training.adaptation import LoraSpec, adapt, adapted_modules, extract_adapter, initial_adapter, load_adapter
from tasks.training.loop import TrainingSpec, train
from tests.aggregators.cases import cored
from tests.local_methods import laws
from tests.local_methods.cases import LORA, OCCASION, SPEC, adapter_of, dense_names, loss_of, make, model_of, trained
from tests.training.pico import examples_of

KINDS = ("mlp", "cnn", "sequence_classification")
SPECS = {**LORA, "sequence_classification": LoraSpec(target_modules=("query",))}


def start_of(base, rank: int = 3) -> LoraAdapter:
    """A share in which no core is zero, on the rows that a run starts from."""
    whole = adapter_of(base, rank, lora=SPECS[base.spec.kind])
    frozen = core_start(whole, seed=5).pairs
    pairs = {path: cored(type(pair)(frozen[path].a, pair.b, 1.0, pair.form)) for path, pair in whole.pairs.items()}
    return LoraAdapter(pairs, whole.dense)


def model_at(base, start: LoraAdapter, *, alpha: float = 0.0):
    lora = SPECS[base.spec.kind]
    model = adapt(base, LoraSpec(lora.target_modules, bias=lora.bias, alpha=alpha), start.ranks, seed=1)
    load_adapter(model, start)
    return model


def run(base, model, method: LocalMethod, **changed) -> None:
    spec = TrainingSpec(**{**SPEC.__dict__, **changed})
    train(model, examples_of(base.spec.kind), np.arange(24), spec, seed=0, method=method)


class Watcher(LocalMethod):
    """Notes what there was to step, and the gradients of the first step."""

    def __init__(self, occasion) -> None:
        super().__init__(occasion)
        self.stepped: list[torch.Size] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def before_step(self, model, optimizer, step):
        self.stepped = [p.shape for group in optimizer.param_groups for p in group["params"]]
        if step == 1:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def watched(base, model, *, is_core: bool, **changed) -> Watcher:
    watcher = Watcher(OCCASION)
    methods = [FedSb(OCCASION), watcher] if is_core else [watcher]
    run(base, model, Together(OCCASION, methods), **changed)
    return watcher


@pytest.fixture(params=KINDS)
def base(request, bases):
    return bases[request.param]


def test_the_optimizer_sees_square_cores_and_dense_tensors_alone(base):
    start = start_of(base)
    model = model_at(base, start)
    dense = [dict(model.named_parameters())[name].shape for name in dense_names(model)]
    stepped = watched(base, model, is_core=True).stepped
    assert sorted(stepped) == sorted([torch.Size((r, r)) for r in start.ranks.values()] + dense)


def test_a_stays_and_b_stays_a_core_that_moved(base):
    start = start_of(base)
    model = model_at(base, start)
    watched(base, model, is_core=True)
    for path, pair in extract_adapter(model).pairs.items():
        assert torch.equal(pair.a, start.pairs[path].a)
        assert stray_share(pair) < 1e-6
        assert float((core_of(pair) - core_of(start.pairs[path])).abs().min()) > 0


def test_the_model_has_the_parameters_that_it_had(base):
    model = model_at(base, start_of(base))
    before = {name: p.shape for name, p in model.named_parameters()}
    buffers = [name for name, _ in model.named_buffers()]
    watched(base, model, is_core=True)
    assert {name: p.shape for name, p in model.named_parameters()} == before
    assert [name for name, _ in model.named_buffers()] == buffers
    assert all(isinstance(pair.b, torch.nn.Parameter) for pair in lora_pairs(model))
    assert type(lora_pairs(model)[0].reader) in {torch.nn.Linear, torch.nn.Conv2d}
    run(base, model, make("lora")(OCCASION))


def test_the_model_computes_the_same_with_cores_in_it(base):
    model = model_at(base, start_of(base)).eval()
    loss, method = loss_of(model, base.spec.kind), FedSb(OCCASION)
    plain = loss()
    method.start(model)
    torch.testing.assert_close(loss(), plain, rtol=1e-5, atol=1e-6)
    method.finish(model)
    torch.testing.assert_close(loss(), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 12.0])
def test_a_step_of_sgd_is_the_plain_step_seen_through_the_frozen_columns(base, alpha):
    start, lr = start_of(base), 0.5
    plain, cores = (model_at(base, start, alpha=alpha) for _ in range(2))
    names = {id(p): name for name, p in plain.named_parameters()}
    names = {pair.path: names[id(pair.b)] for pair in lora_pairs(plain)}
    scalings = {pair.path: pair.scaling for pair in lora_pairs(plain)}
    once = {"optimizer": "sgd", "learning_rate": lr, "max_steps": 1}
    gradients = watched(base, plain, is_core=False, **once).gradients
    watched(base, cores, is_core=True, **once)
    for path, pair in extract_adapter(cores).pairs.items():
        basis = frozen_b(pair.a, len(pair.b))
        along = basis @ (basis.T @ gradients[names[path]].flatten(1).double())
        expected = start.pairs[path].b - lr * scalings[path] * along
        torch.testing.assert_close(pair.b, expected.float(), rtol=1e-4, atol=1e-6)


def test_adam_steps_on_the_core_and_not_on_b(bases):
    base = bases["mlp"]
    start, lr = start_of(base), 0.01
    model = model_at(base, start)
    watched(base, model, is_core=True, max_steps=1, learning_rate=lr)
    for path, pair in extract_adapter(model).pairs.items():
        # The first step of Adam is the learning rate in every number that has a gradient.
        moved = (core_of(pair) - core_of(start.pairs[path])).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, lr), rtol=1e-2, atol=1e-5)


def test_the_same_occasion_gives_the_same_bits(bases):
    base = bases["cnn"]
    ends = []
    for _ in range(2):
        model = model_at(base, start_of(base))
        watched(base, model, is_core=True)
        ends.append(extract_adapter(model))
    assert all(torch.equal(p.b, ends[1].pairs[path].b) for path, p in ends[0].pairs.items())


def test_a_core_of_zeros_learns(bases):
    base = bases["mlp"]
    fresh = initial_adapter(base, SPECS["mlp"], dict.fromkeys(adapted_modules(base, SPECS["mlp"]), 2), seed=1)
    model = model_at(base, core_start(fresh, seed=1))
    watched(base, model, is_core=True)
    assert all(pair.b.any() for pair in extract_adapter(model).pairs.values())


def test_proximal_pulls_the_core(bases):
    base, ends = bases["mlp"], []
    for mu in (0.0, 1e3):
        model = model_at(base, start_of(base))
        methods = [FedSb(OCCASION), make("proximal", proximal_mu=mu)(OCCASION)]
        run(base, model, Together(OCCASION, methods), optimizer="sgd", learning_rate=1e-4)
        ends.append(extract_adapter(model))
    start = start_of(base)
    moved = [sum(float((p.b - start.pairs[m].b).norm()) for m, p in end.pairs.items()) for end in ends]
    assert 0 < moved[1] < moved[0]


def test_rounds_of_cores_learn_and_give_the_server_what_clients_trained(bases):
    base, ranks, losses = bases["mlp"], (3, 2), []
    shapes = adapted_modules(base, SPECS["mlp"])
    whole = core_start(initial_adapter(base, SPECS["mlp"], dict.fromkeys(shapes, 3), seed=1), seed=2)
    initial = whole
    for _ in range(3):
        updates = []
        for rank in ranks:
            at = dict.fromkeys(shapes, rank)
            known = prefix(initial, at).pairs
            start = fill(thin(leading_cores(whole, at), "core"), known, "core", subject="share")
            model = model_at(base, start)
            losses.append(loss_of(model, "mlp")().item())
            watched(base, model, is_core=True, max_steps=6)
            end = extract_adapter(model)
            updates.append(fill(thin(end, "core"), known, "core", subject="update"))
            for path, pair in updates[-1].pairs.items():
                torch.testing.assert_close(pair.b, end.pairs[path].b, rtol=0, atol=1e-6)
        whole = aggregate("fed_sb", updates, [1.0, 2.0], previous=whole)
    assert losses[-1] < losses[2] < losses[0]
    assert all(torch.equal(pair.a, initial.pairs[path].a) for path, pair in whole.pairs.items())


# --- what is refused, and what errors leave behind ------------------------------------------------------------


def test_embeddings_are_refused_and_nothing_is_changed(bases):
    model = model_of(bases["sequence_classification"])
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ModelError, match=r"word_embeddings.*embedding"):
        FedSb(OCCASION).start(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(pair.a.requires_grad for pair in lora_pairs(model))


def test_an_a_of_zeros_is_refused(bases):
    start = start_of(bases["mlp"])
    pairs = {path: type(pair)(torch.zeros_like(pair.a), pair.b, 1.0, pair.form) for path, pair in start.pairs.items()}
    with pytest.raises(ModelError, match="factor a of zeros"):
        FedSb(OCCASION).start(model_at(bases["mlp"], LoraAdapter(pairs, start.dense)))


def test_a_training_that_fails_leaves_a_plain_model(bases):
    base = bases["mlp"]
    model = model_at(base, start_of(base))
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(TrainingDivergedError):
        run(base, model, FedSb(OCCASION), optimizer="sgd", learning_rate=1e30, max_steps=8)
    assert [name for name, _ in model.named_parameters()] == names


def test_methods_finish_in_the_reverse_order_of_their_start():
    told = []

    class Teller(LocalMethod):
        def finish(self, model):
            told.append(self)

    methods = [Teller(OCCASION), Teller(OCCASION)]
    Together(OCCASION, methods).finish(torch.nn.Linear(1, 1))
    assert told == methods[::-1]


def test_without_cores_nothing_is_finished(bases):
    base = bases["mlp"]
    assert laws.same_bits(trained(base, make("lora")), trained(base, lambda o: Together(o, [make("lora")(o)])))
