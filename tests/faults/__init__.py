"""The fault rig: a real engine on a real broker, hit in the middle of its work, and its windows held against the log.

`python -m tests.faults --help` says how it is run; docs/faults.md says what it proves, with the figures of a long run.
"""
