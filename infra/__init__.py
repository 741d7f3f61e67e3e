"""The outside: object stores, MLflow, settings, and how Prefect is used."""
