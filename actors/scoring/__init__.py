"""Who scores: reward models, judges, and the mixes of two scores."""
