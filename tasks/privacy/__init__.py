"""Differential privacy: what was spent, what one client can change at most, and the noise that hides it."""
