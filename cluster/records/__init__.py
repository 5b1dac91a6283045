"""What is written and read: tables, result models and the plan of a run. No engine is loaded."""
