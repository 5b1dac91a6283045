"""The command line's client, and reward functions for other trainers."""
