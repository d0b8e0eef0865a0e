"""Files, access rights, the lock."""
