"""The management commands: `queue` and `queue_pass`."""
