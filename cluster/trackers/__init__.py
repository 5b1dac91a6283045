"""Experiment trackers, one module each; `rayward.cluster.trackers.tracking` opens them."""
