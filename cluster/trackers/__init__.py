"""Experiment trackers, one module each; `cluster.tracking` opens them."""
