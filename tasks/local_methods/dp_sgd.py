"""DP-SGD: every example's gradient is clipped and noise is added, so that no example can be told from the result.

Legend: N examples of a step, T_i items of example i that bear loss: 1 for classifiers, tokens for causal models.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from tasks.errors import ModelError
from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.options import Option
from tasks.privacy.extra import check_installed

if TYPE_CHECKING:
    from opacus.grad_sample.grad_sample_module import GradSampleHooks
    from opacus.optimizers import DPOptimizer

DP_CLIP_NORM = Option(
    name="dp_clip_norm",
    description="largest 2-norm of one example's gradient, over all trained tensors",
    default=1.0,
    least=1e-6,
    most=1e9,
)
DP_NOISE_MULTIPLIER = Option(
    name="dp_noise_multiplier",
    description="standard deviation of the noise over dp_clip_norm; 0 gives no privacy",
    default=1.0,
    most=1000.0,
)


class DpSgd(LocalMethod):
    r"""Steps along the clipped gradients of the examples and noise, $\frac1N(\sum_i \bar g_i + \mathcal N(0, z^2C^2))$.

    $\bar g_i = g_i \min(1, C/\|g_i\|_2)$, $g_i$ being the gradient of example i's own mean loss: for causal models the
    mean over its own tokens, not over the batch's, which would make one example's gradient depend on the others.

    What is promised, and what is not:
        Batches here are a shuffled deal: in one pass every example is in exactly one step, and N is no secret. So each
        pass is one Gaussian mechanism in what one example can change, and n passes (over all rounds) cost
        `epsilon(noise_multiplier=z, sampling_rate=1.0, steps=n, ...)` towards a neighbour in which the example's
        gradient is zero; towards one that holds another example instead, the same at z / 2. No amplification by
        sampling may be claimed: accountants assume Poisson sampling, which this is not, so a rate of batch size over
        examples would state too small an epsilon.
        Only the adapter is covered. Losses, the number of examples and the time taken are reported as they are.
        The noise is torch's: neither cryptographic nor safe against one who reads the last bits.

    Penalties of other methods do not survive: what they add to `grad` is replaced. A method that computes the loss
    again is refused. Clipping by `max_grad_norm` is without effect.

    Args:
        occasion: Whose training; its seed is not used, as others know it.
        dp_clip_norm: C, above 0.
        dp_noise_multiplier: z, 0 or more.
        generator: Where the noise comes from, on the model's device; None for a fresh one, seeded by the operating
            system.

    Raises:
        ConfigError: Opacus is not installed.

    References:
        Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv 1607.00133, algorithm 1; recalled, not
        re-read. Gradients per example, clipping and noise are Opacus 1.6's (Yousefpour et al., 2021, arXiv 2109.12298),
        whose code was read. We differ: no Poisson sampling, hence the guarantee above, and division by N as it is. That
        shuffled batches do not have the guarantee of Poisson ones: Chua et al., "How Private are DP-SGD
        Implementations?", ICML 2024, arXiv 2403.17673; recalled.
    """

    def __init__(
        self,
        occasion: Occasion,
        *,
        dp_clip_norm: float = 1.0,
        dp_noise_multiplier: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(occasion)
        check_installed("local method dp_sgd")
        self._clip_norm, self._noise_multiplier, self._generator = dp_clip_norm, dp_noise_multiplier, generator
        self._items: list[torch.Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._samples: GradSampleHooks | None = None
        self._private: DPOptimizer | None = None

    def start(self, model: nn.Module) -> None:
        """Make every trained module keep its gradient example by example.

        Args:
            model: The adapted model; what it returns does not change.

        Raises:
            ModelError: A batch norm, which mixes examples, a trained module without gradients per example, or a trained
                tensor of half precision, in which norms round beyond the clip.
        """
        from opacus.grad_sample.grad_sample_module import GradSampleHooks
        from peft import PeftModel

        trained = _trained_modules(model)
        _check_modules(model, trained, GradSampleHooks.GRAD_SAMPLERS)
        _check_precision(model)
        self._handles = [module.register_forward_pre_hook(_with_gradient) for module in trained.values()]
        forward = model.get_base_model() if isinstance(model, PeftModel) else model
        self._handles.append(forward.register_forward_pre_hook(self._count, with_kwargs=True))
        # "sum" leaves gradients as they come; the mean is undone in `before_step`, where all its items are known.
        self._samples = GradSampleHooks(model, loss_reduction="sum")

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Replace the gradients by the private ones.

        Args:
            model: The adapted model.
            optimizer: What is about to step.
            step: Number of the step.

        Raises:
            ModelError: Gradients do not come one per example.
        """
        if self._private is None:
            self._private = self._private_optimizer(optimizer)
        items = torch.cat(self._items)
        # The loss of a step is a mean over all its items, so the gradient of example i carries T_i of them.
        factor = items.sum() / items.clamp(min=1)
        names = {parameter: name for name, parameter in model.named_parameters()}
        parameters: list[Any] = self._private.params  # Opacus keeps its tensors in attributes that torch does not know
        for parameter in parameters:
            rows = _rows(parameter, len(items), f"dp_sgd, step {step}, tensor {names[parameter]}")
            parameter.grad_sample = rows * factor.to(rows.dtype).reshape(-1, *[1] * parameter.ndim)
        self._private.expected_batch_size = len(items)
        self._private.pre_step()

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Forget the step's gradients.

        Args:
            model: The adapted model.
            optimizer: What has stepped.
            step: Number of the step.
        """
        if self._private is not None:
            self._private.zero_grad(set_to_none=True)
        self._items.clear()

    def kept_ranks(self, model: nn.Module, ranks: Mapping[str, int]) -> Mapping[str, int]:
        """Keep every slot, and leave the model as it was before `start`.

        Args:
            model: The trained model.
            ranks: Module path -> rank.
        """
        self.detach()
        return ranks

    def detach(self) -> None:
        """Take all hooks off the model; it can be trained on, without privacy."""
        if self._samples is not None:
            self._samples.cleanup()
            self._samples = None
        while self._handles:
            self._handles.pop().remove()

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and torch.is_grad_enabled():
            labels: torch.Tensor = kwargs["labels"]
            # A causal model predicts each token from those before it, so the first bears no loss.
            items = torch.ones_like(labels) if labels.ndim == 1 else (labels[:, 1:] != -100).sum(dim=1)
            self._items.append(items)

    def _private_optimizer(self, optimizer: torch.optim.Optimizer) -> "DPOptimizer":
        from opacus.optimizers import DPOptimizer

        device = optimizer.param_groups[0]["params"][0].device
        generator = self._generator or torch.Generator(device).manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
        return DPOptimizer(
            optimizer,
            noise_multiplier=self._noise_multiplier,
            max_grad_norm=self._clip_norm,
            expected_batch_size=1,
            generator=generator,
        )


def _trained_modules(model: nn.Module) -> dict[str, nn.Module]:
    return {
        path: module
        for path, module in model.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    }


def _check_modules(model: nn.Module, trained: Mapping[str, nn.Module], supported: Mapping[type, Any]) -> None:
    for path, module in model.named_modules():
        # Frozen or not: in training it normalises each example by the others.
        if isinstance(module, _BatchNorm):
            raise ModelError(f"dp_sgd, module {path}", "is a batch norm, which mixes examples",
                             remedy="use a model with layer or group norms")  # fmt: skip
    for path, module in trained.items():
        if type(module) not in supported:
            raise ModelError(
                f"dp_sgd, module {path}", "has no gradients per example", got=type(module).__name__,
                expected="one of " + ", ".join(sorted(kind.__name__ for kind in supported)),
                remedy="adapt linear layers or convolutions only",
            )  # fmt: skip


def _check_precision(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in {torch.float32, torch.float64}:
            raise ModelError(
                f"tensor {name}",
                "cannot be trained privately in half precision: norms would round beyond the clip",
                got=parameter.dtype,
                expected="float32",
                remedy="load the base model in float32, or leave the module out of model.lora.modules_to_save",
            )


def _with_gradient(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    # Torch warns of a backward hook on a module none of whose inputs needs a gradient; the first layer is one.
    first = args[0] if args else None
    if not isinstance(first, torch.Tensor) or not first.is_floating_point():
        return None
    if first.requires_grad or not torch.is_grad_enabled():
        return None
    return first.detach().requires_grad_(), *args[1:]


def _rows(parameter: nn.Parameter, count: int, subject: str) -> torch.Tensor:
    """Return a parameter's gradients [N, ...], as the loop's loss made them; zeros where the step did not use it."""
    found = getattr(parameter, "grad_sample", None)
    if found is None and parameter.grad is None:
        return torch.zeros(count, *parameter.shape, dtype=parameter.dtype, device=parameter.device)
    rows = torch.cat(found) if isinstance(found, list) else found
    if rows is None or len(rows) != count:
        raise ModelError(
            subject, "does not have one gradient per example",
            got="none" if rows is None else f"{len(rows)} gradients", expected=f"{count}, one for each example",
            remedy="train modules that see the batch first, and leave out methods that compute the loss again",
        )  # fmt: skip
    return rows.to(parameter.dtype)
