"""Importing other people's data."""
