"""Many runs of one command: how each ended, and the jobs of a Slurm cluster."""
