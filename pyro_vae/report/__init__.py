"""Figures and text tables. What they show is measured elsewhere."""

from pyro_vae.report import curves, images, tables

__all__ = ["curves", "images", "tables"]
