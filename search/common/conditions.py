"""When a parameter means something, as a table: what a space declares and a sampler reads."""

INACTIVE_CODE = -1  # of what means nothing itself
OFF_CODE = 0  # of a gate's choices
ON_CODE = 1
Condition = dict[str, frozenset[int]]  # categorical -> codes: indices of its choices, or INACTIVE_CODE
Conditions = dict[str, Condition]  # parameter -> what must hold, all of it, for it to mean something
