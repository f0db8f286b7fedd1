#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/tpu_worker.sh [--dry-run] EXPERIMENT.py [--a.b VALUE …] [--run_dir DIR]

What launch/tpu_pod.sh runs on each worker of a TPU pod: one process of the training run, with a look at the metadata
server every 5 seconds. Announced maintenance, or the end of a Spot VM, stops all processes with their state saved;
they start again when it is over, if this machine lives on. After a lost process they start again at most 3 times.
PIXTOK names the program; .venv/bin/pixtok of this checkout by default.
END
}

dry_run=''
case ${1:-} in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=yes && shift ;;
esac
if (($# == 0)) || [[ $1 == -* ]]; then
    usage >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command=("${PIXTOK:-.venv/bin/pixtok}" train "$@")
export PIXTOK_DISTRIBUTED=1 PYTHONUNBUFFERED=1
if [[ $dry_run ]]; then
    printf '%q ' PIXTOK_DISTRIBUTED=1 "${command[@]}" && echo
    exit
fi

metadata() {
    curl --silent --fail --max-time 5 -H 'Metadata-Flavor: Google' \
        "http://metadata.google.internal/computeMetadata/v1/instance/$1" || :
}

# maintenance-event is NONE, MIGRATE_ON_HOST_MAINTENANCE or TERMINATE_ON_HOST_MAINTENANCE; preempted is FALSE or TRUE.
announced() {
    case $(metadata maintenance-event) in MIGRATE_* | TERMINATE_*) return 0 ;; esac
    [[ $(metadata preempted) == TRUE ]]
}

look_out() {
    until announced; do sleep 5; done
    echo "launch/tpu_worker.sh: this machine is about to stop; saving" >&2
    kill -TERM "$1"
}

asked='' tries=0 pid=''
stop() {
    asked=yes
    [[ -z $pid ]] || kill "-$1" "$pid" 2>/dev/null || :
}
trap 'stop INT' INT
trap 'stop TERM' TERM
while :; do
    while announced && [[ -z $asked ]]; do sleep 5; done
    [[ -z $asked ]] || exit 75
    "${command[@]}" </dev/null &
    pid=$!
    look_out "$pid" &
    watcher=$!
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || :; done # A signal interrupts a wait.
    code=0
    wait "$pid" || code=$? # What it exited with, again.
    kill "$watcher" 2>/dev/null || :
    case $code in 0 | 1 | 2 | 3 | 5 | 130) exit "$code" ;; esac
    [[ -z $asked ]] || exit "$code"
    ((code == 75 || tries++ < 3)) || exit "$code"
    echo "launch/tpu_worker.sh: exit code $code, starting again" >&2
done
