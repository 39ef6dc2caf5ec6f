#!/usr/bin/env bash
# A real Slurm of one node on this machine, to try a sweep on: scripts/local_slurm.sh start [--install] | stop | status
#
# Needs root and Debian's or Ubuntu's packages slurm-wlm and munge; --install gets them with apt-get. `start` is done
# when a job can be submitted and is harmless to repeat; `stop` cancels what runs and leaves nothing behind but the
# packages. For trying out alone: no accounting, no limits enforced, everything runs as root.
set -euo pipefail

STATE=${LOCAL_SLURM_DIR:-/var/lib/local-slurm}
CONFIG=/etc/slurm/slurm.conf
OURS='# written by scripts/local_slurm.sh'

fail() { echo "local_slurm.sh: $*" >&2; exit 1; }

is_up() { timeout 5 sinfo --noheader --format=%T 2>/dev/null | grep -qE '^(idle|mixed|allocated)$'; }

is_running() { kill -0 "$(cat "$1" 2>/dev/null)" 2>/dev/null; }

wait_for() {  # seconds, then a command that will succeed
    local left=$(($1 * 10))
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep 0.1
    done
}

install_packages() {
    command -v apt-get >/dev/null || fail "--install needs apt-get; install Slurm and munge by other means"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null
    # The daemons are ours to start: no service, so that nothing else owns them.
    local policy=/usr/sbin/policy-rc.d made=
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; made=$policy; }
    apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null || { rm -f "$made"; fail "apt-get failed"; }
    [ -z "$made" ] || rm -f "$made"
}

write_config() {
    [ ! -e "$CONFIG" ] || grep -qF "$OURS" "$CONFIG" || fail "$CONFIG is not ours: this machine has a Slurm already"
    local host memory_mb
    host=$(hostname -s)
    memory_mb=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024))
    mkdir -p "$(dirname "$CONFIG")"
    # cred_expire: a requeued job waits that long before it starts again (120 s by default).
    cat >"$CONFIG" <<END
$OURS
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthInfo=cred_expire=5
StateSaveLocation=$STATE/controller
SlurmdSpoolDir=$STATE/node
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory_mb
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

start_munge() {
    mkdir -p /etc/munge /run/munge /var/log/munge /var/lib/munge
    [ -s /etc/munge/munge.key ] || (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
    chmod 400 /etc/munge/munge.key
    chmod 700 /etc/munge /var/log/munge /var/lib/munge
    chmod 755 /run/munge
    chown -R munge:munge /etc/munge /run/munge /var/log/munge /var/lib/munge
    timeout 5 munge --no-input >/dev/null 2>&1 && return
    # As the user munge: it refuses to run as root without being forced.
    setpriv --reuid=munge --regid=munge --init-groups /usr/sbin/munged --pid-file="$STATE/munge/munged.pid"
    wait_for 10 munge --no-input >/dev/null 2>&1 || fail "munged does not answer; see /var/log/munge/munged.log"
}

start() {
    is_up && { echo "Slurm is up."; return; }
    [ "$(id -u)" = 0 ] || fail "start needs root"
    if ! command -v slurmctld slurmd munged srun >/dev/null; then
        [ "${1:-}" = --install ] || fail "Slurm is not installed: scripts/local_slurm.sh start --install"
        install_packages
    fi
    mkdir -p "$STATE/controller" "$STATE/node" "$STATE/munge"
    chown munge:munge "$STATE/munge"
    write_config
    start_munge
    is_running "$STATE/slurmctld.pid" || slurmctld
    is_running "$STATE/slurmd.pid" || slurmd
    wait_for 30 is_up || fail "the node does not come up; see $STATE/slurmctld.log and $STATE/slurmd.log"
    sinfo
}

end() {  # a file with a process's number
    is_running "$1" || return 0
    kill "$(cat "$1")"
    wait_for 10 eval "! is_running $1" || kill -KILL "$(cat "$1")"
}

stop() {
    [ -d "$STATE" ] || { echo "Nothing of ours is running."; return; }
    [ "$(id -u)" = 0 ] || fail "stop needs root"
    if is_up; then
        scancel --user=root --quiet || true
        wait_for 5 eval '[ -z "$(squeue --noheader)" ]' || scancel --user=root --signal=KILL --full --quiet || true
        wait_for 40 eval '[ -z "$(squeue --noheader)" ]' || true
    fi
    end "$STATE/slurmd.pid"
    end "$STATE/slurmctld.pid"
    end "$STATE/munge/munged.pid"
    if grep -qsF "$OURS" "$CONFIG"; then rm -f "$CONFIG"; fi
    rm -rf "$STATE"
    echo "Slurm is stopped."
}

case "${1:-}" in
    start) start "${2:-}" ;;
    stop) stop ;;
    status) is_up && sinfo || { echo "Slurm is not up."; exit 1; } ;;
    *) echo "usage: scripts/local_slurm.sh start [--install] | stop | status" >&2; exit 2 ;;
esac
