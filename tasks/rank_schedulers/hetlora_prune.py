"""HetLoRA's pruning as the server sees it: a client that pruned itself is not sent larger ranks again."""

from collections.abc import Mapping

from tasks.rank_schedulers.decision import Bound, RankSignals


def hetlora_prune(signals: RankSignals) -> Mapping[str, Bound]:
    """Bound each client by the rank that it pruned itself to.

    Args:
        signals: What is known; only the clients' limits count.

    Returns:
        A bound for every client that ever pruned itself.

    Invariants:
        A client's limit bounds nobody else. Larger limits never lower a rank.

    References:
        Yae Jee Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024,
        https://arxiv.org/abs/2401.06432. Read: third-party notes of a re-implementation; no official code exists. When
        to prune is decided where the client trains, by the decay of its trailing slots; this only keeps to it. As in
        the notes, a pruned rank does not grow again.
    """
    return {
        client: Bound(limit.pruned_rank, f"the client pruned itself to rank {limit.pruned_rank}")
        for client, limit in sorted(signals.limits.items())
        if limit.pruned_rank > 0 and client in signals.ranks
    }
