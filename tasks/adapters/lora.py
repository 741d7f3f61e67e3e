"""What a LoRA adapter is here: values, nothing that computes a product or touches a file.

Legend of dimensions: R rank, I inputs (all trailing sizes of A flattened), O outputs.
A pair always holds `a: [R, I]` and `b: [O, R]`, whatever the layer kind; `LayerForm` remembers how PEFT stores it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn

import torch

from tasks.errors import AdapterShapeError, NonFiniteUpdateError

LayerKind = Literal["linear", "conv", "embedding"]


@dataclass(frozen=True)
class LayerForm:
    """How PEFT stores a pair on disk.

    Args:
        kind: "linear" and "conv" use `lora_A.weight`/`lora_B.weight`, "embedding" uses `lora_embedding_A`/`_B`.
        a_tail: Sizes of A after the rank; a 3x3 convolution of 8 channels has (8, 3, 3).
        b_tail: Sizes of B after the rank; () for linear and embedding, (1, 1) for a 2-d convolution.
    """

    kind: LayerKind
    a_tail: tuple[int, ...]
    b_tail: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class LoraPair:
    """One module's factors; the update they stand for is `scaling * b @ a`.

    Args:
        a: [R, I].
        b: [O, R].
        scaling: alpha / R, or alpha / sqrt(R) with rsLoRA; 1 once folded.
        form: How PEFT stores the pair; a plain linear layer unless said otherwise.

    Raises:
        AdapterShapeError: The factors do not share one rank.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float = 1.0
    form: LayerForm = field(default=LayerForm("linear", ()))

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise AdapterShapeError(
                "LoRA pair",
                "factors do not share one rank",
                got=f"a {tuple(self.a.shape)}, b {tuple(self.b.shape)}",
                expected="a [R, I] and b [O, R]",
            )
        if not self.form.a_tail:
            object.__setattr__(self, "form", replace(self.form, a_tail=(self.a.shape[1],)))

    @property
    def rank(self) -> int:
        """Number of rank slots, R."""
        return self.a.shape[0]


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """All adapted modules of one model, plus the tensors trained whole.

    Args:
        pairs: Module path -> pair; paths as in the base model, e.g. "encoder.layer.0.attention.self.query".
        dense: Tensor name -> tensor, for heads, biases and norms trained in full.
    """

    pairs: Mapping[str, LoraPair]
    dense: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Sorted copies: sums and files come out in one order, whoever built the adapter.
        object.__setattr__(self, "pairs", dict(sorted(self.pairs.items())))
        object.__setattr__(self, "dense", dict(sorted(self.dense.items())))

    @property
    def ranks(self) -> dict[str, int]:
        """Rank per module path."""
        return {path: pair.rank for path, pair in self.pairs.items()}


def fold_scaling(adapter: LoraAdapter) -> LoraAdapter:
    """Move every pair's scale into `b`, so that `b @ a` alone is the update.

    Args:
        adapter: Any adapter.

    Returns:
        The same update with scaling 1; tensors that need no change are shared, none is written to.
    """
    return LoraAdapter({p: _rescale(pair, 1.0) for p, pair in adapter.pairs.items()}, adapter.dense)


def unfold_scaling(adapter: LoraAdapter, scalings: Mapping[str, float]) -> LoraAdapter:
    """Give every pair the scale its receiver will apply, dividing `b` by it.

    Args:
        adapter: Any adapter.
        scalings: Module path -> scaling of the receiver's layer, all non-zero.

    Returns:
        The same update, expressed under the receiver's scalings.
    """
    return LoraAdapter({p: _rescale(pair, scalings[p]) for p, pair in adapter.pairs.items()}, adapter.dense)


def _rescale(pair: LoraPair, scaling: float) -> LoraPair:
    if pair.scaling == scaling:
        return pair
    return replace(pair, b=pair.b * (pair.scaling / scaling), scaling=scaling)


def prefix(adapter: LoraAdapter, ranks: Mapping[str, int]) -> LoraAdapter:
    """Keep the first rank slots of every module: a client's share of a slot-ordered global adapter.

    Args:
        adapter: The global adapter.
        ranks: Module path -> slots to keep, 1 to the module's rank.

    Returns:
        Contiguous slices; modules without an entry in `ranks` are left out, dense tensors are kept whole.

    Raises:
        AdapterShapeError: A rank is below 1 or above what the adapter holds, or names an unknown module.
    """
    pairs = {}
    for path, rank in ranks.items():
        pair = adapter.pairs.get(path)
        if pair is None or not 1 <= rank <= pair.rank:
            raise AdapterShapeError(
                f"module {path}",
                "cannot take its rank prefix",
                got=f"rank {rank}",
                expected="a module of the adapter" if pair is None else f"a rank of 1 to {pair.rank}",
            )
        pairs[path] = replace(pair, a=pair.a[:rank].contiguous(), b=pair.b[:, :rank].contiguous())
    return LoraAdapter(pairs, adapter.dense)


def layer_text(form: LayerForm, outputs: int) -> str:
    """Return a layer's kind and sizes in words, for errors.

    Args:
        form: How PEFT stores the pair.
        outputs: O.
    """
    return f"{form.kind} layer, a [R, {list(form.a_tail)}], b [{outputs}, R, {list(form.b_tail)}]"


def refuse_misfit(subject: str, got: object, expected: object) -> NoReturn:
    """Raise, because a module or tensor is not the one that others have under its name.

    Args:
        subject: Whom to name, e.g. "update 3, module q_proj".
        got: The layer or tensor, in words.
        expected: The others', in words.

    Raises:
        AdapterShapeError: Always.
    """
    raise AdapterShapeError(
        subject,
        "does not fit the same module or tensor of the others",
        got=got,
        expected=expected,
        remedy="all clients must adapt the same base model with the same configuration",
    )


def check_finite(adapter: LoraAdapter, subject: str) -> None:
    """Raise if any tensor holds NaN or infinity.

    Args:
        adapter: The adapter to look through.
        subject: Whom to name, e.g. "client c07, round 3".

    Raises:
        NonFiniteUpdateError: Names the first offending tensor.
    """
    named = [(f"{path} factor {name}", t) for path, p in adapter.pairs.items() for name, t in (("a", p.a), ("b", p.b))]
    for name, tensor in [*named, *adapter.dense.items()]:
        # A finite sum proves every entry finite, ten times cheaper than asking each; sums may overflow, so then ask.
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteUpdateError(
                f"{subject}, tensor {name}",
                "holds NaN or infinity",
                expected="finite numbers",
                remedy="lower the learning rate or clip gradients",
            )
