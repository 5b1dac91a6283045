"""`rayward doctor`."""
