"""What one client does on its own machine in one round: training, and looking after what it never sends."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from configs.workbench import Workbench
from infra.private_state import PrivateState
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.resize import resize
from tasks.errors import RankweaveError
from tasks.evaluation.metrics import evaluate
from tasks.local_methods.table import local_method
from tasks.rounds.seeds import derive_seed
from tasks.training.adaptation import adapt, extract_adapter, load_adapter, train_only
from tasks.training.loop import TrainingResult, train
from tasks.training.models import BaseModel

ShouldStop = Callable[[], RankweaveError | None]
OWN, PERSONAL = "own", "personal"
"""What a client keeps at home: the factor of its pairs that is not exchanged, and a whole adapter of its own."""


@dataclass(frozen=True)
class Trained:
    """What one training made.

    Args:
        adapter: The trained adapter.
        result: Counts, losses, time.
        metrics: Losses, and figures on the client's validation share as "validation_<metric>".
    """

    adapter: LoraAdapter
    result: TrainingResult
    metrics: dict[str, float]


@dataclass(frozen=True)
class LocalWork:
    """One client in one round.

    Args:
        bench: Its data, and how to train.
        base: Its base model, up to date.
        private: What it keeps at home.
        round_index: The round.
        client_id: Who it is.
        should_stop: Asked at every step; an error it returns ends the training.
    """

    bench: Workbench
    base: BaseModel
    private: PrivateState
    round_index: int
    client_id: str
    should_stop: ShouldStop

    def train(self, start: LoraAdapter) -> Trained:
        """Train from what the server sent, and keep at home what the method does not send.

        Args:
            start: The client's share, whole.
        """
        trained = self._train(self._with_own_factor(start), "train")
        if self.bench.aggregator.sends == "a":
            self.private.save(OWN, self.round_index, trained.adapter)
        return trained

    def train_personal(self, share: LoraAdapter) -> dict[str, float]:
        """Train the adapter that stays here: on from the last one, or anew from the global one when that is due.

        Args:
            share: The client's share of the global adapter.

        Returns:
            "personal_<metric>" -> value.

        References:
            FDLoRA, https://arxiv.org/abs/2406.07925 (abstract read; the schedule is recalled). We differ: the personal
            adapter learns in every round, and the server averages without an outer momentum.
        """
        every = self.bench.config.training.personal.refresh_every
        kept = self.private.latest(PERSONAL, self.round_index)
        is_due = every > 0 and self.round_index % every == 0
        start = share if kept is None or is_due else resize(kept[1], share.ranks)
        trained = self._train(start, "personal")
        self.private.save(PERSONAL, self.round_index, trained.adapter)
        return {f"personal_{name}": value for name, value in trained.metrics.items()}

    def _train(self, start: LoraAdapter, purpose: str) -> Trained:
        bench = self.bench
        seed = derive_seed(bench.config.seed, purpose, self.round_index, self.client_id)
        model = adapt(self.base, bench.lora, start.ranks, seed=seed)
        load_adapter(model, start)
        if bench.aggregator.sends == "b":
            train_only(model, "b")  # what is not sent must not move, or the server would weave something else
        training, validation = bench.client_indices(self.client_id)
        result = train(
            model,
            bench.train,
            training,
            bench.training_spec,
            seed=seed,
            method=local_method(bench.config.training.local_method),
            should_stop=self.should_stop,
        )
        metrics = {"first_loss": result.first_loss, "last_loss": result.last_loss, "mean_loss": result.mean_loss}
        if len(validation):
            size = bench.config.evaluation.batch_size
            scores = evaluate(model, bench.train, batch_size=size, indices=validation, device=bench.device)
            metrics |= {f"validation_{name}": value for name, value in scores.items()}
        return Trained(extract_adapter(model), result, metrics)

    def _with_own_factor(self, start: LoraAdapter) -> LoraAdapter:
        """Put in the factor that this client kept at home, where the method has clients keep one."""
        kept = self.private.latest(OWN, self.round_index) if self.bench.aggregator.sends == "a" else None
        if kept is None:
            return start
        own = kept[1].pairs
        return LoraAdapter({path: _with_b(pair, own.get(path)) for path, pair in start.pairs.items()}, start.dense)


def _with_b(pair: LoraPair, own: LoraPair | None) -> LoraPair:
    """Replace `b` by one that may have been trained at another rank: slots beyond it start as the pair has them."""
    if own is None:
        return pair
    b, shared = pair.b.clone(), min(pair.rank, own.rank)
    b[:, :shared] = own.b[:, :shared]
    return replace(pair, b=b)
