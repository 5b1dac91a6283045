"""What happens: one verb per file, and the recipe that chains them."""
