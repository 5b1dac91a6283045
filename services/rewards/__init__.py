"""Reward scoring over HTTP."""
