"""The subcommands of ``fr-bench``, one file each; :mod:`fr_bench.cli` finds them."""
