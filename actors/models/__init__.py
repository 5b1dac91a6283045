"""Transformers models: their kinds, loading and saving, passes and microbatches."""
