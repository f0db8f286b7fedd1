#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/local.sh [OPTION …] EXPERIMENT.py [--a.b VALUE …] [--run_dir DIR]

One training run on this machine, in several processes.

  -n, --processes N  how many processes; 2 by default
  --devices M        CPU devices of each process; 1 by default
  --gpus G           use G GPUs instead, each process its share of them
  --retries K        start again at most K times after a process was lost or stuck; 3 by default
  --dry-run          print what would be run, and start nothing

Every line begins with the number of its process. Ctrl-C and SIGTERM reach all processes, which save and stop.
PIXTOK names the program; `pixtok` on the PATH by default.
END
}

die() {
    echo "launch/local.sh: $1 (--help says more)" >&2
    exit 2
}

# Wherever it stands: none of what follows is started by mistake.
dry_run='' given=()
for word in "$@"; do
    if [[ $word == --dry-run ]]; then dry_run=yes; else given+=("$word"); fi
done
set -- "${given[@]}"

processes=2 devices=1 gpus='' retries=3
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        -n | --processes | --devices | --gpus | --retries)
            [[ ${2:-} =~ ^[0-9]+$ ]] || die "$1 wants a number" ;;
        -*) die "unknown option $1" ;;
        *) break ;;
    esac
    case $1 in
        -n | --processes) processes=$2 ;;
        --devices) devices=$2 ;;
        --gpus) gpus=$2 ;;
        --retries) retries=$2 ;;
    esac
    shift 2
done
(($#)) || die "no experiment"
((processes > 0)) || die "--processes must be at least 1"
[[ -z $gpus ]] || ((gpus >= processes && gpus % processes == 0)) ||
    die "$gpus GPUs do not divide among $processes processes"
pixtok=${PIXTOK:-pixtok}
[[ $dry_run ]] || command -v "$pixtok" >/dev/null || die "there is no $pixtok: source .venv/bin/activate, or set PIXTOK"

# Sets `command`, what process $1 of all runs.
command_of() {
    local number=$1 share first
    command=(env PYTHONUNBUFFERED=1)
    if ((processes > 1)); then
        command+=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$number")
    fi
    if [[ -z $gpus ]]; then
        command+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices")
    else
        share=$((gpus / processes)) first=$((number * gpus / processes))
        command+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, "$first" $((first + share - 1)))")
    fi
    command+=("$pixtok" train "${@:2}")
}

# One process: its output line by line, its exit code in a file. Signals are pixtok's to answer, not this shell's.
run_process() {
    local line code number=$1
    trap : INT TERM
    set +e
    command_of "$@"
    "${command[@]}" 2>&1 </dev/null | (
        trap '' INT TERM
        while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$number" "$line"; done
    )
    code=${PIPESTATUS[0]}
    echo "$code" >"$codes/$number"
    ((code <= 128 || code == 130)) ||
        echo "launch/local.sh: process $number was killed ($code); the others find out within --deadline.peer" >&2
}

# The exit code of all: the cause, where the processes differ. 4 and what kills may be but its effect on the others.
together() {
    local code found=0 all
    all=$(for ((number = 0; number < processes; number++)); do cat "$codes/$number" 2>/dev/null || echo 137; done)
    for code in 130 2 3 5 1; do if grep -qx "$code" <<<"$all"; then echo "$code" && return; fi; done
    for code in $all; do if ((code != 0 && (found == 0 || found == 75))); then found=$code; fi; done
    echo "$found"
}

forward() {
    local group
    asked=yes
    for group in "${pids[@]}"; do kill "-$1" -- "-$group" 2>/dev/null || :; done
}

port=$((20000 + RANDOM % 20000))
if [[ $dry_run ]]; then
    for ((number = 0; number < processes; number++)); do
        command_of "$number" "$@"
        printf '%q ' "${command[@]}" && echo
    done
    exit
fi
codes=$(mktemp -d) asked='' pids=() tries=0
trap 'rm -rf "$codes"' EXIT
trap 'forward INT' INT
trap 'forward TERM' TERM
while :; do
    rm -f "$codes"/* && pids=()
    set -m # Each process in a group of its own: Ctrl-C reaches it once, through `forward`.
    for ((number = 0; number < processes; number++)); do run_process "$number" "$@" & pids+=($!); done
    set +m
    for pid in "${pids[@]}"; do while kill -0 "$pid" 2>/dev/null; do wait "$pid" || :; done; done
    code=$(together)
    case $code in 0 | 1 | 2 | 3 | 5 | 130) exit "$code" ;; esac
    [[ -z $asked ]] || exit "$code"
    ((code == 75 || tries++ < retries)) || exit "$code"
    echo "launch/local.sh: exit code $code, starting again" >&2
    port=$((20000 + RANDOM % 20000))
done
