"""Where jobs are kept on one machine: in text files, or in the memory of a process.

`protocol` says what a store must do; `textfile` and `memory` are the stores. For text files, from
top to bottom: `claiming` (what a pass holds), `writing` (how the files change), `reading` (what the
files say), `disk` (how a file is opened, locked and synced).
"""
