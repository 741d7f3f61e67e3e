"""Verbs (one Prefect task a module) and nouns (packages that compute and touch nothing)."""
