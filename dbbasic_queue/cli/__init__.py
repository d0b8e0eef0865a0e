"""The command line, `dbbasic-queue`."""
