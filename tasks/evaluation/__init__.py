"""How good an adapted model is: metrics on held-out examples."""
