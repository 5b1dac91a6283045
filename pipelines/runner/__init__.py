"""Running a recipe: preflight, reuse, stages in order, promotion, and the runs command."""
