"""Drawing by HTTP: a queue that fills batches of fixed sizes, requests that are checked, the server."""
