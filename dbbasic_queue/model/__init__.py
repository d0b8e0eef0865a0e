"""What a job is: its states, its row in the file, and what its values may be. No clock, no I/O."""
