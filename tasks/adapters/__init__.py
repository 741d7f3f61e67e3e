"""LoRA adapters as values: pairs, their products, other ranks, admission, PEFT files."""
