"""One main per loop shape, and the tools beside them; the configs say what to run.

`parts` holds what they are made of, `points` what a config's `sweep()` yields.
"""
