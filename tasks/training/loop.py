"""The one training loop: batches of a client's examples, gradients, optimizer steps.

Plain on purpose, and the same for every model and local method: what a method adds are hooks, never a second loop.
Loading adapters into the model and taking them out again is in `adaptation.py`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from tasks.data.examples import Examples
from tasks.errors import DataError, ModelError, RankweaveError, TrainingDivergedError, UnknownNameError
from tasks.local_methods.hooks import LocalMethod
from tasks.rounds.seeds import derive_seed
from tasks.training.randomness import seeded
from tasks.training.spec import OPTIMIZERS, TrainingSpec, resolve_device, uses_bf16

__all__ = ["TrainingResult", "TrainingSpec", "train"]

# How many losses wait before they are looked at: reading one makes a GPU finish its queue first.
CHECK_EVERY = 32


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Args:
        num_examples: Examples the client trained on, each counted once: the basis of its weight.
        num_steps: Optimizer steps.
        num_items: Examples (tokens that bear loss, for language models) that the steps went through.
        first_loss: The task's loss at the first step.
        last_loss: The task's loss at the last step.
        mean_loss: The task's loss over all steps, each weighing as many examples (or tokens) as it saw.
        seconds: Wall time [s].
    """

    num_examples: int
    num_steps: int
    num_items: int
    first_loss: float
    last_loss: float
    mean_loss: float
    seconds: float


def train(  # noqa: PLR0913  what, on what, how, and three things the caller alone can decide
    model: nn.Module,
    examples: Examples,
    indices: np.ndarray,
    spec: TrainingSpec,
    *,
    seed: int,
    method: LocalMethod,
    should_stop: Callable[[], RankweaveError | None] | None = None,
) -> TrainingResult:
    """Train what a model has trainable, in place; on the CPU the same seed gives the same bits.

    Args:
        model: An adapted model; moved to the spec's device, its mode restored at the end.
        examples: Where batches come from.
        indices: [N] positions of the client's examples.
        spec: How to train.
        seed: Seed of the order of examples and of dropout.
        method: What the local method adds to each step.
        should_stop: Asked before every step; an error it returns is raised.

    Returns:
        Counts, losses and time.

    Raises:
        DataError: No examples, or a batch without a token to learn from.
        ModelError: The model has nothing to train.
        TrainingDivergedError: A loss is not finite; names the step.
        UnknownNameError: No such optimizer, precision or device.
        ConfigError: The device is not there.
        RankweaveError: Whatever `should_stop` returned.
    """
    if not len(indices):
        raise DataError("training", "a client has no examples", remedy="check data.partition and data.limit")
    if spec.optimizer not in OPTIMIZERS:
        raise UnknownNameError("optimizer", spec.optimizer, OPTIMIZERS)
    started = time.perf_counter()
    device = resolve_device(spec.device)
    model.to(device)
    was_training = model.training
    model.train()
    try:
        losses = _train(_Step(model, spec, device, method, seed), examples, indices, should_stop)
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
        method.finish(model)
    seconds = time.perf_counter() - started
    values = losses.values
    return TrainingResult(
        num_examples=len(indices),
        num_steps=len(values),
        num_items=sum(losses.items),
        first_loss=values[0],
        last_loss=values[-1],
        mean_loss=losses.mean(),
        seconds=seconds,
    )


@dataclass(frozen=True, eq=False)
class _Step:
    model: nn.Module
    spec: TrainingSpec
    device: torch.device
    method: LocalMethod
    seed: int

    def gradients(self, number: int, batches: Sequence[tuple[dict[str, torch.Tensor], int]]) -> torch.Tensor:
        """Accumulate the gradients of one step's batches; return their mean loss, detached."""
        # A PEFT model's own forward only arranges for features that are not in use here, at half the time of a small
        # network's pass.
        forward = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        total = sum(items for _, items in batches)
        mean = torch.zeros((), device=self.device)
        for position, (batch, items) in enumerate(batches):
            arguments = {name: tensor.to(self.device) for name, tensor in batch.items()}
            task_loss = partial(self._task_loss, forward, arguments, derive_seed(self.seed, number, position))
            loss = task_loss()
            share = items / total
            mean += loss.detach() * share
            penalty = self.method.penalty(self.model, task_loss)
            ((loss if penalty is None else loss + penalty) * share).backward()
        return mean

    def _task_loss(self, forward: Callable[..., Any], arguments: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
        with seeded(seed, self.device), self._autocast():
            return forward(**arguments).loss

    def _autocast(self) -> AbstractContextManager[Any]:
        if uses_bf16(self.spec.precision, self.device):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def _train(
    step: _Step,
    examples: Examples,
    indices: np.ndarray,
    should_stop: Callable[[], RankweaveError | None] | None,
) -> "_Losses":
    step.method.start(step.model)
    trainable = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ModelError("training", "the model has nothing to train", remedy="adapt it first")
    optimizer = OPTIMIZERS[step.spec.optimizer](trainable, step.spec)
    losses = _Losses()
    for number, group in enumerate(_groups(indices, step.spec, step.seed), start=1):
        if should_stop is not None and (error := should_stop()) is not None:
            raise error
        batches = [_counted(examples.batch(positions)) for positions in group]
        losses.add(step.gradients(number, batches), sum(items for _, items in batches))
        if step.spec.max_grad_norm:
            nn.utils.clip_grad_norm_(trainable, step.spec.max_grad_norm)
        step.method.before_step(step.model, optimizer, number)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step.method.after_step(step.model, optimizer, number)
    losses.check()
    return losses


def _groups(indices: np.ndarray, spec: TrainingSpec, seed: int) -> Iterator[list[np.ndarray]]:
    """Yield, step by step, the batches that one optimizer step accumulates."""
    rng = np.random.default_rng(seed)
    num_batches = math.ceil(len(indices) / spec.batch_size)
    steps_per_epoch = math.ceil(num_batches / spec.accumulation_steps)
    num_steps = spec.max_steps or spec.epochs * steps_per_epoch
    batches: list[np.ndarray] = []
    for _ in range(num_steps):
        if not batches:
            order = rng.permutation(indices)
            batches = [order[i : i + spec.batch_size] for i in range(0, len(order), spec.batch_size)]
        yield batches[: spec.accumulation_steps]
        del batches[: spec.accumulation_steps]


def _counted(batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    """Pair a batch with what its mean loss is a mean of: examples, or tokens that bear loss."""
    labels = batch["labels"]
    # A causal model predicts each token from those before it, so the first bears no loss.
    items = len(labels) if labels.ndim == 1 else int((labels[:, 1:] != -100).sum())
    if not items:
        raise DataError(
            "training", "a batch has no token to learn from", remedy="raise data.max_length, or shorten the prompts"
        )
    return batch, items


@dataclass(eq=False)
class _Losses:
    """Losses step by step, read from the device in bundles."""

    values: list[float] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    pending: list[torch.Tensor] = field(default_factory=list)

    def add(self, loss: torch.Tensor, items: int) -> None:
        self.pending.append(loss)
        self.items.append(items)
        if len(self.pending) >= CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Read what is pending; raise for the first step whose loss is not finite."""
        if not self.pending:
            return
        read = torch.stack(self.pending).tolist()
        self.pending.clear()
        self.values.extend(read)
        for step, value in enumerate(read, start=len(self.values) - len(read) + 1):
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"training, step {step}", "the loss is not a finite number", got=value,
                    remedy="lower training.learning_rate, or set training.max_grad_norm",
                )  # fmt: skip

    def mean(self) -> float:
        weighted = zip(self.values, self.items, strict=True)
        return math.fsum(value * items for value, items in weighted) / sum(self.items)
