#!/usr/bin/env bash
# One task of the array that sbatch_sweep.py submits: the command in line SLURM_ARRAY_TASK_ID (from 0) of the file $1.
#
# Slurm tells this shell with SIGUSR2 that the time is nearly up. The run then saves itself and exits with 75, and the
# task goes back into the queue: the shell has to be there to ask for that, so there is no exec.
eval "set -- $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$1")"
time_is_up=
trap 'time_is_up=yes; kill -USR2 "$run"' USR2
trap 'kill -TERM "$run"' TERM
"$@" &
run=$!
until wait "$run"; ! kill -0 "$run" 2>/dev/null; do :; done  # a signal ends `wait` before the run ends
wait "$run"
code=$?
if [ "$code" = 75 ] && [ -n "$time_is_up" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
