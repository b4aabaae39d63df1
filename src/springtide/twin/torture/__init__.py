"""The loss test: faults from a seed, a client that remembers every promise, and a checker of all of them.

`schedule`, `history` and `checker` are pure; `client` speaks HTTP. Striking and healing are the command line's.
"""
