"""Importance weights, the scores computed from them, and their diagnostics."""
