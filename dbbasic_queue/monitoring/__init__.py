"""How a queue is watched: status, counts, metrics."""
