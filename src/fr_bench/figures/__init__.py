"""The figures of ``fr-bench plot``: with the bench's own, all that imports matplotlib, and never
pyplot's global state."""
