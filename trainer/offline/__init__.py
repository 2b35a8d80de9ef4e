"""The offline bench: a data set, a split, the model and the plain methods beside it, and what each finds.

`mindstream evaluate` runs it. A reader turns files into `Sequences`, a split turns those into an `OfflineSet`, methods
answer its questions, and the figures of all methods come from the same lists by the same rules.
"""
