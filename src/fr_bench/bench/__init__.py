"""``fr-bench bench``: speed and memory of the methods and of what a user would run instead, side by side in one run.

And what is predicted of their speed, for it and for a dry run.
"""
