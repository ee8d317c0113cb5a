"""Nothing: `dialects/abq.py` registers the classes of abq's operations.

But the bindings import the module of a dialect before they look for a class, at every operation
until it is found: without this file that was the longest part of all passes.
"""
