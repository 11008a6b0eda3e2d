"""Named data sets. Each module has a function `load(root, download)`, which reads its files below --data-root."""
