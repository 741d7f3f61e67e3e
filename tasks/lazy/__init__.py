"""Clients that may answer "my old update still holds": when they may, and what both sides then know of each other."""
