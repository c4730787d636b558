#!/usr/bin/env bash
# Make sure that Slurm and munge are installed, for tests/slurm: with apt where it may, else say what is missing.
# Nothing is configured or started here; the tests start daemons of their own (see cluster.py).
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing() {
    local program
    for program in munged munge slurmctld slurmd sbatch scancel scontrol sinfo squeue srun; do
        command -v "$program" >/dev/null || echo "$program"
    done
}

if [[ -n $(missing) && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "Installing slurm-wlm and munge with apt"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends slurm-wlm munge >/dev/null
fi
if [[ -n $(missing) ]]; then
    echo "error: not installed:" $(missing) >&2
    echo "Install Slurm 22.05 or newer and munge (Debian, Ubuntu: apt-get install slurm-wlm munge), or run this as root." >&2
    exit 1
fi
