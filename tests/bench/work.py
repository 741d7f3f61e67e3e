"""The work that all peers do: digits, one LoRA network, its training loop and its evaluation, in bare torch.

What lives here imports nothing but numpy, torch and scikit-learn, because it also runs beside Flower, where Rankweave
is not installed. A work travels between environments as one .npz file, written by `rankweave_peer.export_work`.

Legend of dimensions: N examples, I inputs, O outputs, R rank.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional

Span = tuple[float, float]


@dataclass(frozen=True)
class WorkSpec:
    """The numbers of a work.

    Args:
        rounds: Rounds to train.
        epochs: Passes over a client's examples in a round.
        batch_size: Examples per step.
        learning_rate: Of Adam.
        evaluation_batch_size: Examples per evaluation step on the server.
    """

    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float
    evaluation_batch_size: int


@dataclass(frozen=True, eq=False)
class Work:
    """One federated run, down to the order of the batches.

    Args:
        spec: Its numbers.
        train: Pixels [N, I] float32 and labels [N] int64 that clients learn from.
        test: The same, for the server.
        clients: Positions in `train` of each client's examples.
        seeds: [rounds, clients] seeds of the order of each client's batches.
        base: Frozen weight [O, I] of each layer.
        adapter: What is trained, as it is before the first round: a [R, I], b [O, R] and bias [O] of each layer.
    """

    spec: WorkSpec
    train: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]
    clients: tuple[np.ndarray, ...]
    seeds: np.ndarray
    base: tuple[np.ndarray, ...]
    adapter: tuple[np.ndarray, ...]

    @property
    def trained_parameters(self) -> int:
        """Numbers that a client sends in a round."""
        return sum(array.size for array in self.adapter)

    def save(self, path: Path) -> None:
        """Write the work as one file."""
        lists = {
            "train": self.train,
            "test": self.test,
            "clients": self.clients,
            "base": self.base,
            "adapter": self.adapter,
        }
        arrays = {f"{name}-{i:03d}": array for name, arrays in lists.items() for i, array in enumerate(arrays)}
        np.savez(path, allow_pickle=False, spec=json.dumps(asdict(self.spec)), seeds=self.seeds, **arrays)


def load_work(path: Path) -> Work:
    """Read a work back from its file."""
    with np.load(path) as file:
        held = {name: file[name] for name in sorted(file.files)}
    lists = {
        name: tuple(array for key, array in held.items() if key.startswith(f"{name}-"))
        for name in ("train", "test", "clients", "base", "adapter")
    }
    return Work(WorkSpec(**json.loads(str(held["spec"]))), seeds=held["seeds"], **lists)


class LoraMlp(nn.Module):
    """Linear layers with ReLU between them: frozen weights, trained LoRA factors (scale 1) and biases."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.base = [torch.from_numpy(weight) for weight in work.base]
        self.trained = nn.ParameterList(nn.Parameter(torch.from_numpy(array.copy())) for array in work.adapter)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[N, I] -> logits [N, labels]."""
        hidden = pixels
        for layer, weight in enumerate(self.base):
            a, b, bias = self.trained[3 * layer : 3 * layer + 3]
            hidden = functional.linear(hidden, weight, bias) + functional.linear(functional.linear(hidden, a), b)
            hidden = functional.relu(hidden) if layer + 1 < len(self.base) else hidden
        return hidden

    def load(self, arrays: Sequence[np.ndarray]) -> None:
        """Put an adapter in."""
        with torch.no_grad():
            for parameter, array in zip(self.trained, arrays, strict=True):
                parameter.copy_(torch.from_numpy(array))

    def extract(self) -> list[np.ndarray]:
        """Take a copy of the adapter out."""
        return [parameter.detach().numpy().copy() for parameter in self.trained]


def train(model: LoraMlp, work: Work, *, round_index: int, client: int) -> Span:
    """Train one client in one round, as `tasks.training.loop` does.

    Args:
        model: Trained in place.
        work: The work.
        round_index: From 1.
        client: From 0.

    Returns:
        When the training loop was entered and left: everything from making the optimizer to reading the losses
        [s, monotonic clock of the machine].
    """
    started, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _steps(model, work, round_index=round_index, client=client)
    finally:
        torch.set_num_threads(threads)
    return started, time.monotonic()


def _steps(model: LoraMlp, work: Work, *, round_index: int, client: int) -> None:
    spec, indices = work.spec, work.clients[client]
    pixels, labels = torch.from_numpy(work.train[0]), torch.from_numpy(work.train[1])
    optimizer = torch.optim.Adam(model.parameters(), spec.learning_rate, fused=True)
    rng = np.random.default_rng(int(work.seeds[round_index - 1, client]))
    losses = []
    for _ in range(spec.epochs):
        order = rng.permutation(indices)
        for start in range(0, len(order), spec.batch_size):
            picked = torch.from_numpy(order[start : start + spec.batch_size])
            loss = functional.cross_entropy(model(pixels[picked]), labels[picked])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
    torch.stack(losses).tolist()


def evaluate(model: LoraMlp, work: Work) -> dict[str, float]:
    """Measure a global adapter on the server's examples, as `tasks.evaluation.metrics` does."""
    pixels, labels = torch.from_numpy(work.test[0]), work.test[1]
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in pixels.split(work.spec.evaluation_batch_size)])
        loss = float(functional.cross_entropy(logits, torch.from_numpy(labels)))
    predicted = logits.argmax(-1).numpy()
    macro_f1 = float(f1_score(labels, predicted, average="macro"))
    return {"accuracy": float(np.mean(predicted == labels)), "macro_f1": macro_f1, "loss": loss}


def covered_s(spans: Sequence[Span]) -> float:
    """Return for how long at least one of the spans was running [s]: time in which two overlap counts once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
