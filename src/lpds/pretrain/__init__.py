"""Datasets, their recipes, and behaviour cloning of the project's own decoders."""
