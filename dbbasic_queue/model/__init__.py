"""What a job is: pure, no clock, no disk."""
