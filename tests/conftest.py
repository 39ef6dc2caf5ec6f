"""What every test process is set up with."""

import gc

# Torch's modules make a million objects that stay; looking through them again and again takes a tenth of the tests'
# time. fr_bench.cli.console does the same.
gc.set_threshold(200_000, 10, 10)


def pytest_sessionfinish() -> None:
    """Nor shall pytest, and then the interpreter, look through all of them again and again before they end."""
    gc.freeze()
