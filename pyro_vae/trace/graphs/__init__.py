"""Records of programs: their tensor operations as one graph, and what keeps such a record from going stale."""
