"""From a base model to a trained adapter: models, networks of our own, adaptation by PEFT, the training loop."""
