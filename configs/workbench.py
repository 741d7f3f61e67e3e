"""From a config to the values that training needs: data, partition, base model, LoRA.

Built once per process and handed to the steps that need it, because it is heavy. A plain class, not a dataclass:
Prefect walks through dataclasses it is given as arguments, and would walk through the data.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any

import msgspec
import numpy as np

from configs.experiment import ExperimentConfig
from configs.sections import NO_RULE
from configs.sections.options import values_of
from configs.stages import initiates_whole, on_whole_model, rounds_on_whole_model
from tasks.adapters.core import core_start
from tasks.adapters.lora import LoraAdapter, LoraPair, prefix
from tasks.adapters.thin import Parts
from tasks.aggregators.fold import Fold
from tasks.aggregators.robust.screen import ScreenedFold
from tasks.aggregators.robust.table import robust_rule
from tasks.aggregators.table import Aggregator, aggregator
from tasks.codecs.codec import Codec, Trip
from tasks.codecs.table import codec, wire
from tasks.data.examples import Examples
from tasks.data.partitions import Partition, PartitionSpec, partition
from tasks.data.prepare import prepare_examples
from tasks.data.sources import RawData, SourceSpec, read_source
from tasks.errors import ConfigError
from tasks.lazy.rules import Rule
from tasks.lazy.table import lazy_rule
from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.promises import LocalMethodRow, trained_in
from tasks.local_methods.table import LOCAL_METHODS
from tasks.local_methods.together import Together
from tasks.options import allotted
from tasks.rank_schedulers import initial_ranks, module_ranks
from tasks.rounds.capabilities import Capability
from tasks.rounds.exchange import Exchange
from tasks.rounds.ledger import adapter_parameters
from tasks.rounds.records import RoundPlan
from tasks.rounds.seeds import derive_seed
from tasks.training.adaptation import LoraSpec, adapted_modules, initial_adapter, peft_config
from tasks.training.loop import TrainingSpec
from tasks.training.merging import merged
from tasks.training.models import BaseModel, BaseModelSpec, load_base
from tasks.training.spec import resolve_device

TEXT_KINDS = {"sequence_classification", "causal_lm"}


_SHARED_BY_STAGES = ("raw", "train", "test", "partition", "base")


class Workbench:
    """Everything a run needs in memory, loaded on first use.

    Args:
        config: The experiment.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        self._merged: tuple[tuple[str, ...], BaseModel] | None = None

    def load(self) -> "Workbench":
        """Load data and model now, so that what is wrong with them shows before anything is written.

        Raises:
            DataError: The data cannot be read or partitioned.
            ModelError: The model cannot be loaded or adapted.
        """
        _ = self.train, self.test, self.ceilings, self.stage(0).ceilings
        self._check_cohort()
        return self

    def _check_cohort(self) -> None:
        """Check what can only be checked once it is known who the clients are."""
        cohort, everyone = self.config.cohort, len(self.clients)
        wanted = min(cohort.cohort_size or everyone, everyone)
        if cohort.quorum > wanted:
            raise ConfigError(
                "cohort.quorum", "is above the clients wanted", got=cohort.quorum, expected=f"at most {wanted}"
            )
        if self.aggregator.sends == "b":
            self._check_frozen_factor()
        alone = [client for client in self.clients if self.quality_metric and not len(self.client_indices(client)[1])]
        if alone:
            raise ConfigError(
                "aggregation.weighting",
                f"ranked needs a validation share of every client; with one example only: {', '.join(alone)}",
                remedy="raise data.partition.min_examples to 2, or use another weighting",
            )

    def _check_frozen_factor(self) -> None:
        """With `a` frozen at zero, as PEFT draws it for embeddings, a product could never leave zero."""
        dead = [path for path, pair in self._initial.pairs.items() if not bool(pair.a.any())]
        if dead:
            raise ConfigError(
                "aggregation.name",
                f"{self.aggregator.name} freezes factor a, which is zero in {', '.join(dead)}: they would never learn",
                remedy="leave embedding layers out of model.lora.target_modules, or use another aggregator",
            )

    @property
    def quality_metric(self) -> str:
        """The client's own metric that weights rest on; empty when they rest on none."""
        if self.config.aggregation.weighting != "ranked":
            return ""
        return "validation_token_accuracy" if self.config.model.kind == "causal_lm" else "validation_accuracy"

    @property
    def device(self) -> str:
        """Where this process trains and evaluates: one device, because adapted models share the base's weights."""
        return str(resolve_device(self.config.training.device))

    def frozen_config(self) -> dict[str, Any]:
        """Return the config as plain values, without the field that only says how this process started."""
        return self.config.model_dump(mode="json", exclude={"resume_run"})

    def flat_config(self) -> dict[str, object]:
        """Return the config as "section.field" -> value, as MLflow's parameters want it."""
        return dict(_flatten("", self.frozen_config()))

    # --- data ---

    @cached_property
    def raw(self) -> RawData:
        """The data set as it was read."""
        data, kind = self.config.data, self.config.model.kind
        reads_text = kind in TEXT_KINDS
        return read_source(
            data.source,
            SourceSpec(
                location=data.location,
                text_column=data.columns.text if reads_text else "",
                text_pair_column=data.columns.text_pair if reads_text else "",
                label_column="" if kind == "causal_lm" else data.columns.label,
                prompt_column=data.columns.prompt if kind == "causal_lm" else "",
                image_column="" if reads_text else data.columns.image,
                train_split=data.train_split,
                test_split=data.test_split,
                test_fraction=data.test_frac,
                limit=data.limit,
                seed=derive_seed(self.config.seed, "data"),
            ),
        )

    @cached_property
    def train(self) -> Examples:
        """What clients learn from, all of it."""
        return self._prepare("train")

    @cached_property
    def test(self) -> Examples:
        """What the server evaluates on."""
        return self._prepare("test")

    def _prepare(self, split: str) -> Examples:
        return prepare_examples(
            getattr(self.raw, split),
            kind=self.config.model.kind,
            processor=self.base.processor,
            max_length=self.config.model.max_length,
            input_shape=self.base.spec.input_shape,
        )

    @cached_property
    def partition(self) -> Partition:
        """Which client holds which examples."""
        return partition(
            PartitionSpec(**self.config.data.partition.model_dump()),
            labels=self.raw.train.labels,
            columns=self.raw.train.columns,
            seed=derive_seed(self.config.seed, "partition"),
            num_examples=len(self.raw.train),
        )

    @property
    def clients(self) -> list[str]:
        """All client ids, sorted."""
        return sorted(self.partition.indices)

    def client_indices(self, client_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a client's training and validation examples.

        Args:
            client_id: Who.

        Returns:
            Positions in `train`; the second array is empty unless a validation share is configured.

        Raises:
            ConfigError: There is no such client.
        """
        if client_id not in self.partition.indices:
            raise ConfigError(
                f"client {client_id!r}", "holds no data here", expected="one of " + ", ".join(self.clients)
            )
        indices = self.partition.indices[client_id]
        rng = np.random.default_rng(derive_seed(self.config.seed, "validation", client_id))
        held_out = int(len(indices) * self.config.training.validation_frac)
        if self.config.training.validation_frac > 0 and len(indices) > 1:
            held_out = max(1, held_out)
        shuffled = rng.permutation(indices)
        return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])

    def test_indices(self, clients: Iterable[str]) -> np.ndarray | None:
        """Return the test examples of some clients, where the data say whose they are.

        Args:
            clients: Clients of one cluster.

        Returns:
            Positions in `test` whose value of the partition's column is one of these clients'; None, for all of them,
            where clients were dealt their data by us, or the test split has none of theirs.
        """
        spec = self.config.data.partition
        if spec.name != "natural" or spec.column not in self.raw.test.columns:
            return None
        mine = {self.partition.origins[client] for client in clients}
        values = np.asarray([str(value) for value in self.raw.test.columns[spec.column]])
        found = np.flatnonzero(np.isin(values, sorted(mine)))
        return found if len(found) else None

    # --- model ---

    @cached_property
    def base(self) -> BaseModel:
        """The frozen base model."""
        model = self.config.model
        is_own = model.kind in {"mlp", "cnn"}
        return load_base(
            BaseModelSpec(
                kind=model.kind,
                location=model.location,
                revision=model.revision,
                num_labels=len(self.raw.label_names),
                label_names=self.raw.label_names,
                input_shape=_image_shape(self.raw) if is_own else (),
                hidden_sizes=tuple(model.hidden_sizes) if is_own else (),
                seed=derive_seed(self.config.seed, "base"),
            )
        )

    def base_spec_json(self) -> dict[str, Any]:
        """Return the base model by reference, as the registry stores it."""
        return asdict(self.base.spec)

    @cached_property
    def lora(self) -> LoraSpec:
        """What is adapted."""
        lora = self.config.model.lora
        return LoraSpec(
            target_modules=tuple(lora.target_modules),
            alpha=lora.alpha,
            use_rslora=lora.use_rslora,
            dropout=lora.dropout,
            bias=lora.bias,
            modules_to_save=tuple(lora.modules_to_save),
            whole_model=lora.whole_model,
        )

    @cached_property
    def module_shapes(self) -> dict[str, tuple[int, int]]:
        """Module path -> (O, I) of every adapted module."""
        return adapted_modules(self.base, self.lora)

    @cached_property
    def ceilings(self) -> dict[str, int]:
        """Module path -> its rank at the run's largest rank, never above what the layer allows."""
        own = {entry.module: entry.max_rank for entry in self.config.ranks.module_ranks}
        unknown = [name for name in own if not any(_names(name, path) for path in self.module_shapes)]
        if unknown:
            raise ConfigError(
                "ranks.module_ranks",
                f"no adapted module is called {', '.join(unknown)}",
                expected="one of " + ", ".join(self.module_shapes),
            )
        wanted = {
            path: next((rank for name, rank in own.items() if _names(name, path)), self.config.ranks.max_rank)
            for path in self.module_shapes
        }
        return {path: min(wanted[path], *shape) for path, shape in self.module_shapes.items()}

    def module_ranks(self, rank: int) -> dict[str, int]:
        """Return the rank of every module for a client of this rank."""
        return module_ranks(rank, self.config.ranks.max_rank, self.ceilings)

    def initial_ranks(self) -> dict[str, int]:
        """Return every client's rank in the first round."""
        ranks = self.config.ranks
        return initial_ranks(self.clients, ranks.max_rank, list(ranks.client_fractions))

    @property
    def may_lower_ranks(self) -> bool:
        """Whether a client may come back with less than it was sent: the method takes any rank, and sends all of it.

        Not in runs that hide their clients: the size of the global adapter would tell of them.
        """
        row, hides = self.aggregator, self.config.privacy.mode != "none"
        return row.mixed_ranks and row.downlink == "slice" and row.sends == "both" and not hides

    @property
    def moves_ranks(self) -> bool:
        """Whether ranks may change while the run goes on, other than by what clients cannot hold."""
        return set(self.config.ranks.schedulers) != {"fixed"}

    def cut_to(self, share: LoraAdapter, rank: int) -> LoraAdapter:
        """Cut a client's share to a lower rank, as the method cuts shares."""
        return self.aggregator.share(share, self.module_ranks(rank))

    def rank_within(self, kept: Mapping[str, int], rank: int) -> int:
        """Return the largest rank, at most the one given, at which the widest modules have no more slots than kept.

        Narrow modules go along in proportion: one slot of a few is a large step, and must not take it for all modules.

        Args:
            kept: Module path -> slots.
            rank: The client's rank.
        """
        slots = self.module_ranks(rank)
        if not slots:
            return rank
        widest = [path for path, count in slots.items() if count == max(slots.values())]
        fitting = (r for r in range(rank, 0, -1) if all(self.module_ranks(r)[path] <= kept[path] for path in widest))
        return next(fitting, 1)

    def values(self, rank: int) -> int:
        """Count the numbers in the adapter of a client of this rank."""
        return adapter_parameters(self.module_shapes, self.module_ranks(rank), self.dense_parameters)

    def as_simulated(self, client_id: str, measured: Capability) -> Capability:
        """Return what a client reports of its machine: what it measured, or what the simulation gives it."""
        dispatch = self.config.dispatch
        if dispatch.mode != "inline" or not dispatch.simulated_machines:
            return measured
        machines = dispatch.simulated_machines
        given = machines[self.clients.index(client_id) % len(machines)].model_dump()
        return msgspec.structs.replace(measured, **{name: value for name, value in given.items() if value > 0})

    def loses(self, round_index: int, client_id: str) -> bool:
        """Tell whether the simulated link loses a client's answer in a round; every attempt of it, or none."""
        dispatch = self.config.dispatch
        if dispatch.mode != "inline" or dispatch.simulated_loss == 0:
            return False
        seed = derive_seed(self.config.seed, "loss", round_index, client_id)
        return np.random.default_rng(seed).random() < dispatch.simulated_loss

    def initial_adapter(self, rounds_done: int = 0) -> LoraAdapter:
        """Return the adapter that a stage of the run starts from: B = 0, so it changes nothing yet.

        Args:
            rounds_done: Rounds before the stage; 0 for the adapter of round 0.
        """
        return self.stage(rounds_done)._initial

    def stage(self, rounds_done: int) -> "Workbench":
        """Return what the next round trains with: this bench, or its like on the whole model while the run initiates.

        Args:
            rounds_done: Rounds so far that made a new global adapter.
        """
        if self.config.model.lora.whole_model or not initiates_whole(self.config):
            return self
        return self._whole if rounds_done < rounds_on_whole_model(self.config, self.base.num_parameters) else self

    @cached_property
    def _whole(self) -> "Workbench":
        bench = Workbench(on_whole_model(self.config))
        bench.__dict__.update({name: getattr(self, name) for name in _SHARED_BY_STAGES if name in self.__dict__})
        return bench

    @cached_property
    def _initial(self) -> LoraAdapter:
        drawn = initial_adapter(self.base, self.lora, self.ceilings, seed=derive_seed(self.config.seed, "adapter"))
        if self.aggregator.sends == "core":
            return core_start(drawn, seed=derive_seed(self.config.seed, "cores"))
        return drawn

    def base_with(self, additions: Mapping[str, LoraAdapter]) -> BaseModel:
        """Return the base model with updates added to its weights; the last one made is kept for the next client.

        Args:
            additions: Digest -> update, oldest first.
        """
        key, last = tuple(additions), self._merged  # one look: another thread may put its own there
        if last is None or last[0] != key:
            self._merged = last = key, merged(self.base, list(additions.values()))
        return last[1]

    # --- method ---

    @property
    def aggregator(self) -> Aggregator:
        """How updates are woven, and what that method promises."""
        return aggregator(self.config.aggregation.name)

    def fold(self) -> Fold:
        """Start an aggregation: the method with its options, behind the robust rule if there is one."""
        aggregation = self.config.aggregation
        start = partial(self.aggregator.fold, values_of(aggregation.options))
        if aggregation.robust == NO_RULE:
            return start()
        values = values_of(aggregation.robust_options)
        return ScreenedFold(start, robust_rule(aggregation.robust).start(values))

    @property
    def uplink_codec(self) -> Codec:
        """How updates are encoded, and what that promises."""
        return codec(self.config.exchange.uplink_codec)

    @property
    def downlink_codec(self) -> Codec:
        """How shares are encoded, and what that promises."""
        return codec(self.config.exchange.downlink_codec)

    @property
    def is_lazy(self) -> bool:
        """Whether clients may skip an upload."""
        return lazy_rule(self.config.exchange.lazy).may_skip

    @cached_property
    def lazy_rule(self) -> Rule:
        """When a client may skip an upload."""
        return lazy_rule(self.config.exchange.lazy).rule(values_of(self.config.exchange.lazy_options))

    @property
    def is_downlink_lossy(self) -> bool:
        """Whether clients may start from something else than the server meant."""
        return not self.downlink_codec.is_exact

    def exchange(self, plan: RoundPlan) -> Exchange:
        """Return how shares and updates of a planned round are thinned and encoded."""
        return self.exchange_in(plan.round_index, plan.rounds_done)

    def exchange_in(self, round_index: int, rounds_done: int) -> Exchange:
        """Return how shares and updates of a round are thinned and encoded.

        Clients of a stacking method start from factors of their own.

        Args:
            round_index: The round.
            rounds_done: Rounds before it that made a global adapter, by which factors may take turns.
        """
        row, exchange = self.aggregator, self.config.exchange
        return Exchange(
            downlink="none" if row.downlink == "stack" else self._downlink_parts,
            uplink=row.sends if row.sends != "both" else trained_in(self._local_methods, rounds_done),
            known=self._known_pairs,
            cut=self.cut_to,
            down=wire(exchange.downlink_codec, values_of(exchange.downlink_options)),
            up=wire(exchange.uplink_codec, values_of(exchange.uplink_options)),
            trip=Trip(round_index, derive_seed(self.config.seed, "codec", round_index)),
        )

    @property
    def _downlink_parts(self) -> Parts:
        """Factors that shares are sent with: not the one that no client ever trains and no aggregation changes."""
        row = self.aggregator
        keeps_a = row.averages == "slots" and row.downlink == "slice" and row.noop_fixed_point and not self.moves_ranks
        if row.sends == "both" and keeps_a and any(method.trains == "b" for method in self._local_methods):
            return "b"
        return row.sends

    @property
    def _local_methods(self) -> list[LocalMethodRow]:
        return [LOCAL_METHODS[name] for name in self.config.training.local_methods]

    def _known_pairs(self, round_index: int, client_id: str, ranks: Mapping[str, int]) -> Mapping[str, LoraPair]:
        """Return what a client can tell without being sent it: drawn anew where the method starts anew, or round 0's.

        The same on the client and on the server; factors that are sent replace those in it.
        """
        if self.aggregator.downlink == "stack":
            seed = derive_seed(self.config.seed, "fresh", round_index, client_id)
            return initial_adapter(self.base, self.lora, ranks, seed=seed).pairs
        return prefix(self._initial, ranks).pairs

    @cached_property
    def dense_parameters(self) -> int:
        """Numbers in the tensors that are trained whole."""
        return sum(tensor.numel() for tensor in self._initial.dense.values())

    def peft_config(self, adapter: LoraAdapter) -> dict[str, Any]:
        """Return the adapter_config.json that an adapter is published with."""
        return peft_config(self.base, self.lora, adapter)

    def local_method(self, occasion: Occasion) -> LocalMethod:
        """Make what the config adds to a client's training, fresh for one training.

        Args:
            occasion: Whose training.
        """
        # What hides examples hooks into whatever trains, so it starts when the others have frozen what does not.
        rows = sorted(self._local_methods, key=lambda row: row.guards_examples)
        values = allotted(rows, values_of(self.config.training.options))
        return Together(occasion, [row.method(occasion, values[row.name]) for row in rows])

    @property
    def training_spec(self) -> TrainingSpec:
        """What a client does in a round."""
        training, optimizer = self.config.training, self.config.training.optimizer
        return TrainingSpec(
            epochs=training.epochs,
            max_steps=training.max_steps,
            batch_size=training.batch_size,
            accumulation_steps=training.accumulation_steps,
            precision=training.precision,
            device=training.device,
            optimizer=optimizer.name,
            learning_rate=optimizer.learning_rate,
            momentum=optimizer.momentum,
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.max_grad_norm,
        )


def _image_shape(raw: RawData) -> tuple[int, ...]:
    """(C, H, W) of the first image; images without channels are grey."""
    if raw.train.images is None:
        return ()
    first = np.asarray(raw.train.images[0])
    return (1, *first.shape) if first.ndim == 2 else (first.shape[2], *first.shape[:2])


def _names(name: str, path: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _flatten(prefix: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flatten(f"{prefix}.{key}" if prefix else key, inner)]
    return [(prefix, value)]
