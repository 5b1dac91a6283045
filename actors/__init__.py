"""Who acts: one model role per file, and the maths that the roles share."""
