"""How jobs are run: one after another, several at once, or in several processes."""
