"""Who acts? The model roles of a run, and the maths that they share."""
