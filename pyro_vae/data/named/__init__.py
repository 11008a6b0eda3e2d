"""Data sets by name, a module each whose `load(root, download)` reads the files below --data-root."""
