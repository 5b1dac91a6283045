"""Rejection sampling fine-tuning."""
