"""Figures and text tables of given numbers and images; measurements are in `instruments`."""

from pyro_vae.report import curves, images, tables

__all__ = ["curves", "images", "tables"]
