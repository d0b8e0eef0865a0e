"""What the queue's file and its journal say, read without the lock.

`view` keeps an `index` of the rows up to date, by `tail` and, after a fold of another process,
`replaced`. `snapshot` reads all jobs, `lookup` a single one. `bulk` and `offsets` make long files
quick, `header` and `unreadable` check lines.
"""
