"""How a queue is watched."""
