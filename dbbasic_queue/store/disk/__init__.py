"""How files are opened, locked, written and synced."""
