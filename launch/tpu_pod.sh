#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/tpu_pod.sh [--dry-run] [--zone ZONE] [--queued] VERB NAME …

  create NAME FLAG …            a TPU VM, or with --queued a queued resource; FLAGs are gcloud's:
                                  create pod --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
                                  --queued create pod --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot
                                  --queued create pod … --node-count=2         (two slices)
  install NAME                  copy what is committed here to all workers, as ~/pixtok, and install it
  run NAME EXPERIMENT.py [--a.b VALUE …] [--run_dir DIR]
                                start launch/tpu_worker.sh on all workers, and return; --run_dir gs://… suits all of them
  watch NAME                    what all workers print, from ~/pixtok.log
  stop NAME                     save the state and stop on all workers; `run` goes on
  delete NAME                   give the TPU back

  --queued                      NAME is a queued resource, in all verbs
  --zone ZONE                   gcloud's property compute/zone by default
  --dry-run                     print what would be run, and start nothing
END
}

die() {
    echo "launch/tpu_pod.sh: $1 (--help says more)" >&2
    exit 2
}

# Wherever it stands: none of what follows is started by mistake.
dry_run='' given=()
for word in "$@"; do
    if [[ $word == --dry-run ]]; then dry_run=yes; else given+=("$word"); fi
done
set -- "${given[@]}"

kind=tpu-vm zone=() everywhere=(--worker=all)
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        --queued) kind=queued-resources everywhere=(--worker=all --node=all) && shift ;;
        --zone) zone=("--zone=${2:?--zone wants a zone}") && shift 2 ;;
        -*) die "unknown option $1" ;;
        *) break ;;
    esac
done
(($# >= 2)) || die "a verb and a name are needed"
verb=$1 name=$2
shift 2
[[ $name != -* ]] || die "$verb wants a name, not $name"
[[ $verb == create || $verb == run ]] || (($# == 0)) || die "$verb takes nothing after its name, but there is $1"

do_or_print() {
    if [[ $dry_run ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

tpu() { # VERB ARGUMENT …
    do_or_print gcloud compute tpus "$kind" "$1" "${@:2}" "${zone[@]}"
}

on_all_workers() {
    tpu ssh "$name" "${everywhere[@]}" "--command=$1"
}

# The Python of TPU VMs is older than pixtok's.
install='python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --allow-existing --python 3.12'
install+=' && ~/.local/bin/uv pip install -q -c constraints.txt -e ".[gcs]" "jax[tpu]"'

case $verb in
    create)
        if [[ $kind == queued-resources ]]; then
            case " $* " in
                *" --node-count"*) set -- "--node-prefix=$name" "$@" ;;
                *) set -- "--node-id=$name" "$@" ;;
            esac
        fi
        tpu create "$name" "$@"
        ;;
    install)
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        do_or_print git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz -o "$folder/pixtok.tar.gz" HEAD
        tpu scp "$folder/pixtok.tar.gz" "$name:" "${everywhere[@]}"
        on_all_workers "mkdir -p pixtok && tar -xzf pixtok.tar.gz -C pixtok && cd pixtok && $install"
        ;;
    run)
        (($#)) || die "no experiment"
        on_all_workers "if kill -0 \$(cat pixtok.pid) 2>/dev/null; then echo 'a run is under way here' >&2; exit 2; fi; \
nohup pixtok/launch/tpu_worker.sh$(printf ' %q' "$@") >>pixtok.log 2>&1 </dev/null & echo \$! >pixtok.pid"
        ;;
    watch) on_all_workers "tail -n 50 -F pixtok.log | sed -u \"s/^/\$(hostname): /\"" ;;
    stop) on_all_workers "kill -TERM \$(cat pixtok.pid); tail --pid=\$(cat pixtok.pid) -f /dev/null" ;;
    delete) if [[ $kind == tpu-vm ]]; then tpu delete "$name" --quiet; else tpu delete "$name" --force --quiet; fi ;;
    *) die "unknown verb $verb" ;;
esac
