"""Plain LoRA: the training step as it is."""

from tasks.local_methods.hooks import LocalMethod


class PlainLora(LocalMethod):
    """Adds nothing: loss, gradients and step stay as they are.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685; as published,
        the adapter itself being PEFT's.
    """
