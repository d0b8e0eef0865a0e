"""How the queue file and its journal change."""
