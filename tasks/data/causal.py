"""Prompts and completions -> tokens and labels for causal language models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import DataError

IGNORED = -100


@dataclass(frozen=True, eq=False)
class CausalTokens:
    """Token sequences with their labels.

    Args:
        input_ids: One sequence of token ids per example.
        labels: Aligned with `input_ids`; -100 marks tokens without loss.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]


def joined_prompt(prompt: str) -> str:
    """Return a prompt as the model sees it, in training and when it is asked: ending in white space.

    Args:
        prompt: The prompt of the data or of a caller.

    Returns:
        The prompt; a line break is added unless it is empty or ends in white space already.
    """
    return prompt if not prompt or prompt[-1].isspace() else prompt + "\n"


def causal_tokens(
    texts: Sequence[str], prompts: Sequence[str] | None, tokenizer: Any, *, max_length: int
) -> CausalTokens:
    """Tokenise prompts with their completions, end each in the end-of-text token, cut at `max_length`.

    Prompt and completion are tokenised together, so that the tokens are those the text would have anyway; the
    tokens that they share with the prompt tokenised alone carry no loss.

    Args:
        texts: Completions, or whole texts.
        prompts: One per text, or None.
        tokenizer: The base model's.
        max_length: Most tokens of an example [tokens].

    Returns:
        Tokens and labels per example.

    Raises:
        DataError: The tokenizer has no end-of-text token, or an example has no token left that carries loss.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            "model.location", "its tokenizer has no end-of-text token", remedy="use a model made for text generation"
        )
    openings = [joined_prompt(prompt) for prompt in prompts] if prompts else [""] * len(texts)
    wholes = tokenizer([opening + text for opening, text in zip(openings, texts, strict=True)], verbose=False)[
        "input_ids"
    ]
    heads = tokenizer(openings, verbose=False)["input_ids"] if prompts else [[]] * len(texts)
    closed = [ids if ids[-1:] == [end] else [*ids, end] for ids in wholes]
    input_ids = [ids[:max_length] for ids in closed]
    labels = [_masked(ids, _num_shared(ids, head)) for ids, head in zip(input_ids, heads, strict=True)]
    # The first label is never predicted: nothing comes before it.
    silent = [row for row, row_labels in enumerate(labels) if set(row_labels[1:]) <= {IGNORED}]
    if silent:
        raise DataError(
            "model.max_length",
            f"row {silent[0]} has no token left to learn from once it is cut",
            got=f"{max_length} tokens, and {len(silent)} of {len(labels)} rows like that",
            expected="room for the prompt and at least one token of the completion",
            remedy="raise model.max_length, or remove rows with long prompts or empty texts",
        )
    return CausalTokens(input_ids, labels)


def _num_shared(ids: Sequence[int], head: Sequence[int]) -> int:
    pairs = enumerate(zip(ids, head, strict=False))
    return next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(ids), len(head)))


def _masked(ids: list[int], num_ignored: int) -> list[int]:
    return [IGNORED] * num_ignored + ids[num_ignored:]
