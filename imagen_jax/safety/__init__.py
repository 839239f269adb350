"""Parts between a request and its picture: words that are refused, the log, a watermark, provenance."""
