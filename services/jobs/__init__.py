"""Jobs over HTTP: queue, records, lease, history, on Ray's job submission API."""
