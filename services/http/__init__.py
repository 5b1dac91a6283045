"""What every route shares: keys, limits, errors, metrics."""
