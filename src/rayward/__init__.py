"""Safety RLHF on a Ray cluster."""
