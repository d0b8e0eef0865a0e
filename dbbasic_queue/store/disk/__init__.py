"""Files, access rights, syncing, and the lock."""
