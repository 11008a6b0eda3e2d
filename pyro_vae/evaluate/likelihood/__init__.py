"""Importance weights, the scores made of them, and their diagnostics."""
