"""The only code that touches the queue's files: open, lock, append, read, fold.

`store.py` is the door; what it uses, top to bottom: `slots` (who is alive), `fold` (journal into
file), `view` (what file and journal say), `lock` (who may write), `files` (how a file is opened).
"""
