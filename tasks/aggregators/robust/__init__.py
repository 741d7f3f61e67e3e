"""Rules that guard an aggregate against a few hostile updates: one published rule per file, all in `ROBUST_RULES`."""
