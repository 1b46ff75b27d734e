"""Experiments as data: one file each, its docstring the label."""
