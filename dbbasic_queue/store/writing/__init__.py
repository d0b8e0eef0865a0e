"""How the files change."""
