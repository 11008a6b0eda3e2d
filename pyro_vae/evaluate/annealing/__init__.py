"""Annealed importance sampling and Hamiltonian Monte Carlo."""
