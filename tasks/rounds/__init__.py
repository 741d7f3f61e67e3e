"""A run on paper: keys, records, seeds, admission of manifests and the ledger."""
