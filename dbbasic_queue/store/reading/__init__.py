"""Reads the queue file and its journal. No lock is needed.

`view` keeps an `index` of the rows up to date: `tail` reads the new lines, and `replaced` compares
the old file with the one that another process's fold has put there. `snapshot` reads all jobs,
`lookup` a single one; `unique` finds pending jobs by their payload. `bulk` and `offsets` make long
files fast. `header` checks the first line, and `unreadable` explains why a line isn't a job.
"""
