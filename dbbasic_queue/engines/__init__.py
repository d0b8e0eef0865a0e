"""The same calls on a distributed engine; so far, only what an engine must do (`protocol`)."""
