"""The floor: a plain Python loop over rounds and clients in one process; nothing is kept, nothing is checked."""

import time

import numpy as np

from tests.bench.rounds import Rounds
from tests.bench.work import LoraMlp, Work, covered_s, evaluate, train


def run_plain(work: Work) -> Rounds:
    """Run a work."""
    model, arrays, done = LoraMlp(work), list(work.adapter), Rounds()
    weights = np.array([len(indices) for indices in work.clients], dtype=np.float64)
    weights /= weights.sum()
    for round_index in range(1, work.spec.rounds + 1):
        updates, spans = [], []
        for client in range(len(work.clients)):
            model.load(arrays)
            spans.append(train(model, work, round_index=round_index, client=client))
            updates.append(model.extract())
        arrays = [np.tensordot(weights, same, axes=1).astype(np.float32) for same in zip(*updates, strict=True)]
        model.load(arrays)
        done.metrics.append(evaluate(model, work))
        done.training_s.append(covered_s(spans))
        done.ended.append(time.monotonic())
    return done
