"""Who may ask: the HTTP surface. Serving and the job API build on `cluster` and `actors` here."""
