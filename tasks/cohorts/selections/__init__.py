"""Ways to choose who is invited to a round: blindly, or by what clients showed in earlier rounds."""
