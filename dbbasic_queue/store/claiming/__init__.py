"""Which pass has which jobs."""
