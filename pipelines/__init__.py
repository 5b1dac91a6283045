"""What happens? The stages of a run, what runs them, and the report."""
