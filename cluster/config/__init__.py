"""Typed configuration: strict, frozen, importable without torch."""
