"""What the settings of several models must be."""

from __future__ import annotations

from fr_bench.errors import ConfigError


def check_sizes(**sizes: int) -> None:
    """Raises ConfigError for a size, by the name of its setting, below 1."""
    for key, value in sizes.items():
        if value < 1:
            raise ConfigError(f"model.{key}={value}: must be an integer of at least 1.")


def check_dropout(dropout: float) -> None:
    """Raises ConfigError for a probability outside [0, 1)."""
    if not 0 <= dropout < 1:
        raise ConfigError(f"model.dropout={dropout}: must be at least 0 and below 1.")
