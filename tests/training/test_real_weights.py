import os
from pathlib import Path

import numpy as np
import pytest

from tasks.data.examples import TokenExamples
from tasks.evaluation.metrics import evaluate
from tasks.local_methods.hooks import Occasion
from tasks.local_methods.table import local_method
from tasks.training.adaptation import LoraSpec, adapt, adapted_modules
from tasks.training.loop import TrainingSpec, train
from tasks.training.models import BaseModelSpec, load_base, state_digest

DATA = os.environ.get("RANKWEAVE_DATA", "")

TEXTS = [
    "Once upon a time, there was a robot named Weave. Weave liked to count beads with his friends.",
    "One day, Weave found three red beads in the park. He gave one bead to each friend.",
    "The robot said, \"Let us weave a long blanket.\" Everyone helped, and the blanket grew and grew.",
    "At night, Weave put the beads in a box. He was happy, and his friends were happy too.",
] * 4  # fmt: skip


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="RANKWEAVE_DATA names no folder of real weights")
def test_a_pretrained_language_model_learns_a_new_story():
    base = load_base(BaseModelSpec("causal_lm", location=str(Path(DATA) / "stories260k")))
    assert base.num_parameters == 260_032
    rows = [base.processor(text)["input_ids"] for text in TEXTS]
    examples = TokenExamples(rows, rows, pad_id=base.processor.pad_token_id)
    lora = LoraSpec(target_modules=("all-linear",), alpha=16)
    model = adapt(base, lora, dict.fromkeys(adapted_modules(base, lora), 4), seed=0)
    before = evaluate(model, examples, batch_size=8)
    spec = TrainingSpec(max_steps=12, batch_size=8, learning_rate=1e-2, device="cpu")
    train(model, examples, np.arange(len(rows)), spec, seed=0, method=local_method("lora").method(Occasion(0, 1)))
    after = evaluate(model, examples, batch_size=8)
    assert after["loss"] < before["loss"] - 0.3
    assert after["token_accuracy"] > before["token_accuracy"]
    assert state_digest(base.network) == base.digest
