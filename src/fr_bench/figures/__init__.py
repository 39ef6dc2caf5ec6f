"""The figures of ``fr-bench plot``: the only package that imports matplotlib, and never pyplot's global state."""
