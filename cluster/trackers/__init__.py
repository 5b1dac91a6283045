"""Experiment trackers, one module each; `rayward.cluster.tracking` opens them."""
