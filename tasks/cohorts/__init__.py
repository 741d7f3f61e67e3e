"""Who takes part in a round: sampling, quorum, missing clients, capability."""
