"""Dialects of the bindings that are imported in another way than the wheel does.

`dialects/mlir.py` has the bindings look here first for what a dialect's operations are.
"""
