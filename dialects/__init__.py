"""What exists: the abq dialect, number formats and their meaning in numpy.

Imports nothing of ours.
"""
