import math

import numpy as np
import pytest
import torch
from torch import nn

from tasks.data.examples import TensorExamples, TokenExamples
from tasks.errors import DataError
from tasks.evaluation.metrics import HIGHER_IS_BETTER, evaluate, per_class_accuracy
from tasks.training.networks import NetworkOutput

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.5], [1.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 1, 2, 2, 1])
"""Predicted 0, 1, 1, 2, 0: right for examples 0, 1 and 3."""


class Echo(nn.Module):
    """Takes logits for images, to know what comes out."""

    def forward(self, pixel_values):
        assert torch.is_inference_mode_enabled()
        assert not self.training
        return NetworkOutput(pixel_values)


class Successor(nn.Module):
    """Predicts that each token is followed by the next one, with a logit of 2."""

    def forward(self, input_ids, attention_mask):
        return NetworkOutput(2.0 * nn.functional.one_hot(input_ids + 1, num_classes=10).float())


CLASSES = TensorExamples({"pixel_values": LOGITS, "labels": LABELS})


def cross_entropy(logits, label) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_classification_metrics_are_the_worked_ones_at_any_batch_size(batch_size):
    metrics = evaluate(Echo(), CLASSES, batch_size=batch_size)
    # F1 by class: 0 has 1 of 1 right and 1 wrong guess, 1 has 1 of 2 and 1 wrong, 2 has 1 of 2 and none.
    f1 = [2 / 3, 2 / 4, 2 / 3]
    losses = [cross_entropy(row.tolist(), label) for row, label in zip(LOGITS, LABELS.tolist(), strict=True)]
    assert metrics == pytest.approx({"accuracy": 3 / 5, "macro_f1": sum(f1) / 3, "loss": sum(losses) / 5})


def test_only_the_named_positions_count():
    metrics = evaluate(Echo(), CLASSES, batch_size=2, indices=np.array([0, 3]))
    assert metrics["accuracy"] == 1
    assert metrics["macro_f1"] == 1


def test_per_class_accuracy_is_the_recall_of_each_class_that_occurs():
    assert per_class_accuracy(Echo(), CLASSES, batch_size=2) == {0: 1.0, 1: 0.5, 2: 0.5}
    assert per_class_accuracy(Echo(), CLASSES, batch_size=2, indices=np.array([2])) == {2: 0.0}


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_language_metrics_count_each_token_that_bears_loss_once(batch_size):
    # Followed by the next number: 4 of 6. Masked and padding positions bear no loss.
    rows = [[1, 2, 3, 4], [5, 7], [1, 2, 5]]
    labels = [[1, 2, 3, 4], [5, 7], [1, -100, 5]]
    metrics = evaluate(Successor(), TokenExamples(rows, labels, pad_id=0), batch_size=batch_size)
    right, wrong = cross_entropy([2.0] + [0.0] * 9, 0), cross_entropy([2.0] + [0.0] * 9, 1)
    loss = (3 * right + 2 * wrong) / 5
    assert metrics == pytest.approx({"loss": loss, "perplexity": math.exp(loss), "token_accuracy": 3 / 5})


def test_a_hopeless_model_has_infinite_perplexity():
    class Wrong(Successor):
        def forward(self, input_ids, attention_mask):
            return NetworkOutput(1e4 * super().forward(input_ids, attention_mask).logits)

    examples = TokenExamples([[1, 5]], [[1, 5]], pad_id=0)
    assert evaluate(Wrong(), examples, batch_size=1)["perplexity"] == math.inf


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_gets_its_mode_back(is_training):
    model = Echo().train(is_training)
    evaluate(model, CLASSES, batch_size=2)
    assert model.training is is_training


def test_every_metric_says_which_way_is_better():
    examples = TokenExamples([[1, 2]], [[1, 2]], pad_id=0)
    named = {*evaluate(Echo(), CLASSES, batch_size=2), *evaluate(Successor(), examples, batch_size=1)}
    assert named == set(HIGHER_IS_BETTER)


def test_nothing_to_measure_is_refused():
    with pytest.raises(DataError, match="no examples"):
        evaluate(Echo(), CLASSES, batch_size=2, indices=np.arange(0))
    with pytest.raises(DataError, match="no token"):
        evaluate(Successor(), TokenExamples([[1, 2]], [[-100, -100]], pad_id=0), batch_size=1)
