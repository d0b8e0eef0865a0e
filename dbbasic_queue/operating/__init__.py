"""What the command line and the web page both do with a queue."""
