"""Targeted safety context distillation."""
