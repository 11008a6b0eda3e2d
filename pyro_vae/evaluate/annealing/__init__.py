"""Annealed importance sampling (AIS), its Hamiltonian Monte Carlo kernels, and imputation of missing pixels."""
