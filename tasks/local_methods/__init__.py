"""What a client's training step adds to plain LoRA: one method per file, one table of methods."""
