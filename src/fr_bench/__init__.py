"""fr-bench: train deep networks without backward locking, and measure it honestly."""

__version__ = "0.1.0"
