"""Supervised stages: SFT, safety SFT and the reward models."""
