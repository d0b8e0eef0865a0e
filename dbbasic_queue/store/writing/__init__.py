"""How the files change: rows and records are appended, and folded by an atomic rewrite."""
