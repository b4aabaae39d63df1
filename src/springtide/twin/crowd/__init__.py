"""The crowd: an open-loop generator whose buyers behave as people do. It runs in a process of its own.

demand (a CSV) → schedule (send times) → buyers (what a person does) → generator (when it is done) → client
(HTTP); figures keeps the count.
"""
