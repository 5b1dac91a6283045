"""Measuring policies: held-out prompts, TruthfulQA, ToxiGen, and gates."""
