"""FedProx: training is held close to what the server sent."""

from collections.abc import Callable

import torch
from torch import nn

from tasks.local_methods.hooks import LocalMethod, Occasion
from tasks.local_methods.pairs import wide
from tasks.options import Option

PROXIMAL_MU = Option(
    name="proximal_mu",
    description="strength of the pull towards what the server sent [loss per squared distance, halved]",
    default=0.01,
    most=1e6,
)
INITIATING_ROUNDS = Option(
    name="initiating_rounds",
    description="rounds of the initiating stage, before ranks are annealed; 0 for a pull in every round",
    default=0,
    most=1e6,
    kind="count",
)


class Proximal(LocalMethod):
    r"""Adds $\frac{\mu}{2} \|\theta - \theta_t\|^2$, the sum running over all trained tensors, factors and dense alike.

    The distance is one of factors: an adapter with another (b, a) of the same product is not at distance 0.

    Args:
        occasion: Whose training.
        proximal_mu: $\mu$; 0 adds nothing.
        initiating_rounds: The last round with a pull; 0 for all rounds.

    Invariants:
        Zero, and without a gradient, where nothing has moved yet. Its gradient is $\mu (\theta - \theta_t)$.

    References:
        Tian Li, Anit Kumar Sahu, Manzil Zaheer, Maziar Sanjabi, Ameet Talwalkar, Virginia Smith, "Federated
        Optimization in Heterogeneous Networks", MLSys 2020, https://arxiv.org/abs/1812.06127. Recalled, not read again
        for this; as published, restricted to the tensors that are trained. With `initiating_rounds` it is also the
        regulariser of SA-FedLoRA's first stage, https://arxiv.org/abs/2405.09394v1 (abstract only: "parameter
        regularization"; that it has this form is ours; what that stage trains, the adapter or the whole model, is an
        option of the rank scheduler `sa_annealing`).
    """

    def __init__(self, occasion: Occasion, *, proximal_mu: float, initiating_rounds: int) -> None:
        super().__init__(occasion)
        is_over = 0 < initiating_rounds < occasion.round_index
        self._mu = 0.0 if is_over else proximal_mu
        self._received: dict[str, torch.Tensor] = {}

    def start(self, model: nn.Module) -> None:
        """Remember what the server sent."""
        if self._mu:
            self._received = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    def penalty(self, model: nn.Module, loss_again: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        r"""Return half of $\mu$ times the squared distance from what was received."""
        del loss_again
        if not self._received:
            return None
        moved = [p - self._received[n] for n, p in model.named_parameters() if n in self._received]
        return self._mu / 2 * torch.stack([wide(difference).square().sum() for difference in moved]).sum()
