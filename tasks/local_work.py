"""What one client does on its own machine in one round: training, and looking after what it never sends."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from configs.workbench import Workbench
from infra.private_state import PrivateState
from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.adapters.resize import resize
from tasks.aggregators.shares import living_prefix
from tasks.errors import ClientMemoryError, RankweaveError
from tasks.evaluation.metrics import evaluate
from tasks.local_methods.fed_sb import FedSb
from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.together import Together
from tasks.rounds.seeds import derive_seed
from tasks.training.adaptation import adapt, extract_adapter, load_adapter, train_only
from tasks.training.loop import TrainingResult, train
from tasks.training.memory import free_memory, is_out_of_memory, measured_peak, release_memory
from tasks.training.models import BaseModel
from tasks.training.spec import TrainingSpec, resolve_device

ShouldStop = Callable[[], RankweaveError | None]
OWN, PERSONAL = "own", "personal"
"""What a client keeps at home: the factor of its pairs that is not exchanged, and a whole adapter of its own."""


@dataclass(frozen=True)
class Effort:
    """How much a client takes on.

    Args:
        rank: Its rank.
        batch_size: Examples per forward pass; 0 for the config's own.
    """

    rank: int
    batch_size: int = 0


@dataclass(frozen=True)
class Trained:
    """What one training made.

    Args:
        adapter: The trained adapter, at the ranks worth sending.
        result: Counts, losses, time.
        metrics: Losses, and figures on the client's validation share as "validation_<metric>".
        effort: What the client took on.
        rank: Rank of the adapter: that of the effort, or lower where the local method pruned it.
        free_bytes: Memory that was free before it, the base model being in its place [bytes].
        peak_bytes: Memory that the training took; 0 where nothing measures it [bytes].
    """

    adapter: LoraAdapter
    result: TrainingResult
    metrics: dict[str, float]
    effort: Effort
    rank: int
    free_bytes: int = 0
    peak_bytes: int = 0


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
        rounds_done: Rounds before this one that made a new global adapter.
    """

    bench: Workbench
    base: BaseModel
    private: PrivateState
    round_index: int
    client_id: str
    should_stop: ShouldStop
    rounds_done: int = 0

    def train_within_memory(self, start_at: Callable[[int], LoraAdapter], invited: Effort) -> Trained:
        """Train, and where memory does not hold that, once more at half the rank, and once more at half the batch.

        Args:
            start_at: Rank -> the client's share at it, whole.
            invited: What the plan asks for.

        Raises:
            ClientMemoryError: None of that fitted.
        """
        failure: Exception | None = None
        for effort in self._efforts(invited):
            try:
                return self.train(start_at(effort.rank), effort)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = error
            # Not in the handler: as long as it runs, the failed training's tensors are held by the traceback.
            failure.__traceback__ = None
            release_memory(resolve_device(self.bench.device))
        raise self._too_little_memory(invited) from failure

    def _too_little_memory(self, effort: Effort) -> ClientMemoryError:
        return ClientMemoryError(
            f"client {self.client_id}, round {self.round_index}",
            "memory does not hold the training, nor what it fell back to",
            got=f"rank {effort.rank}, batch {effort.batch_size or self.bench.config.training.batch_size}",
            remedy="lower training.batch_size or model.max_length, or adapt fewer modules; ranks matter little here",
        )

    def _efforts(self, invited: Effort) -> Iterator[Effort]:
        yield invited
        rank = invited.rank
        if self.bench.may_lower_ranks and rank > 1:
            rank //= 2
            yield Effort(rank, invited.batch_size)
        batch_size = invited.batch_size or self.bench.config.training.batch_size
        if batch_size > 1:
            yield Effort(rank, batch_size // 2)

    def train(self, start: LoraAdapter, effort: Effort) -> Trained:
        """Train from what the server sent, and keep at home what the method does not send.

        Args:
            start: The client's share at the effort's rank, whole.
            effort: What to take on.
        """
        trained = self._train(self._with_own_factor(start), "train", effort)
        if self.bench.aggregator.sends == "a":
            self.private.save(OWN, self.round_index, trained.adapter)
        return trained

    def train_personal(self, share: LoraAdapter, effort: Effort) -> Trained:
        """Train the adapter that stays here: on from the last one, or anew from the global one when that is due.

        Args:
            share: The client's share of the global adapter, at the effort's rank.
            effort: What the client managed in this round.

        References:
            FDLoRA, https://arxiv.org/abs/2406.07925 (abstract read; the schedule is recalled). We differ: the personal
            adapter learns in every round, and the server averages without an outer momentum.
        """
        every = self.bench.config.training.personal.refresh_every
        kept = self.private.latest(PERSONAL, self.round_index)
        is_due = every > 0 and self.round_index % every == 0
        start = share if kept is None or is_due else living_prefix(resize(kept[1], share.ranks), share.ranks)
        try:
            trained = self._train(start, "personal", effort)
        except Exception as error:
            if is_out_of_memory(error):
                raise self._too_little_memory(effort) from error
            raise
        self.private.save(PERSONAL, self.round_index, trained.adapter)
        return trained

    def _train(self, start: LoraAdapter, purpose: str, effort: Effort) -> Trained:
        bench = self.bench
        seed = derive_seed(bench.config.seed, purpose, self.round_index, self.client_id)
        model = adapt(self.base, bench.lora, start.ranks, seed=seed)
        load_adapter(model, start)
        if bench.aggregator.sends == "b":
            train_only(model, "b")  # what is not sent must not move, or the server would weave something else
        training, validation = bench.client_indices(self.client_id)
        occasion = Occasion(derive_seed(seed, "method"), self.rounds_done + 1)
        method: LocalMethod = bench.local_method(occasion)
        if bench.aggregator.sends == "core":
            method = Together(occasion, [FedSb(occasion), method])  # first: others look at what there is to train
        device = resolve_device(bench.device)
        model.to(device)  # first, or the base model would count as what training takes
        free_bytes = free_memory(device)
        with measured_peak(device) as peak:
            result = train(
                model,
                bench.train,
                training,
                _with_batch(bench.training_spec, effort.batch_size),
                seed=seed,
                method=method,
                should_stop=self.should_stop,
            )
        metrics = {"first_loss": result.first_loss, "last_loss": result.last_loss, "mean_loss": result.mean_loss}
        if len(validation):
            size = bench.config.evaluation.batch_size
            scores = evaluate(model, bench.train, batch_size=size, indices=validation, device=bench.device)
            metrics |= {f"validation_{name}": value for name, value in scores.items()}
        rank = bench.rank_within(method.kept_ranks(model, start.ranks), effort.rank)
        adapter = extract_adapter(model)
        if rank < effort.rank:
            # A prefix, not the best cut: other clients' slots, with which these will be averaged, keep their places.
            adapter = prefix(adapter, bench.module_ranks(rank))
        return Trained(adapter, result, metrics, effort, rank, free_bytes, peak.taken_bytes)

    def _with_own_factor(self, start: LoraAdapter) -> LoraAdapter:
        """Put in the factor that this client kept at home, where the method has clients keep one."""
        kept = self.private.latest(OWN, self.round_index) if self.bench.aggregator.sends == "a" else None
        if kept is None:
            return start
        own = kept[1].pairs
        return LoraAdapter({path: _with_b(pair, own.get(path)) for path, pair in start.pairs.items()}, start.dense)


def _with_batch(spec: TrainingSpec, batch_size: int) -> TrainingSpec:
    """Train with smaller batches, but as many of them to a step as it takes to see the same examples."""
    if not batch_size or batch_size >= spec.batch_size:
        return spec
    per_step = spec.batch_size * spec.accumulation_steps
    return replace(spec, batch_size=batch_size, accumulation_steps=math.ceil(per_step / batch_size))


def _with_b(pair: LoraPair, own: LoraPair | None) -> LoraPair:
    """Replace `b` by one that may have been trained at another rank: slots beyond it start as the pair has them."""
    if own is None:
        return pair
    b, shared = pair.b.clone(), min(pair.rank, own.rank)
    b[:, :shared] = own.b[:, :shared]
    return replace(pair, b=b)
