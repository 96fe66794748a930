"""`pymq demo`: six small programs, each in a process of its own, and the director who starts them.

Read the programs first - `shop` has what travels, then `publisher`, `by_class`, `by_pattern`, `worker`, `server`, `client`:
they are what you would write. `director` starts them, `stage` runs one, `speed` measures this machine.
"""
