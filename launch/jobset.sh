#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/jobset.sh [--dry-run] tpu|gpu OPTION … EXPERIMENT.py [--a.b VALUE …] --run_dir gs://BUCKET/DIR

A training run on Google Kubernetes Engine, as a JobSet: fills in launch/jobset-tpu.yaml or launch/jobset-gpu.yaml.

  --name NAME            of the JobSet
  --image IMAGE          a container image with pixtok[gcs] and jax[tpu] or jax[cuda13]; EXPERIMENT.py is a path in it
  --bucket BUCKET        a Cloud Storage bucket with the data sets, mounted at /data: --data.path /data/mine
  --accelerator TYPE     as GKE labels its nodes: tpu-v6e-slice, tpu-v5-lite-podslice …; nvidia-h100-80gb …
  --topology TOPOLOGY    of a TPU slice: 4x4 …
  --hosts N              hosts of a TPU slice, or GPU nodes
  --chips N              chips of a host; 4 for TPUs and 8 for GPUs by default
  --slices N             TPU slices; 1 by default
  --service_account SA   of Kubernetes, that may read the bucket and write the run directory; `default` by default
  --dry-run              print the JobSet instead of `kubectl apply`
END
}

die() {
    echo "launch/jobset.sh: $1 (--help says more)" >&2
    exit 2
}

# Wherever it stands: none of what follows is started by mistake.
dry_run='' given=()
for word in "$@"; do
    if [[ $word == --dry-run ]]; then dry_run=yes; else given+=("$word"); fi
done
set -- "${given[@]}"

variant=''
declare -A value=([SLICES]=1 [SERVICE_ACCOUNT]=default)
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        tpu | gpu) variant=$1 && shift && continue ;;
        --name | --image | --bucket | --accelerator | --topology | --service_account)
            [[ ${2:-} =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || die "$1 cannot be '${2:-}'" ;;
        --hosts | --chips | --slices)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "$1 wants a number" ;;
        -*) die "unknown option $1" ;;
        *) break ;;
    esac
    option=${1#--}
    value[${option^^}]=$2
    shift 2
done
case $variant in
    tpu) : "${value[CHIPS]=4}" ;;
    gpu) : "${value[CHIPS]=8}" "${value[TOPOLOGY]=none}" ;;
    *) die "tpu or gpu?" ;;
esac
(($#)) || die "no experiment"
for option in name image bucket accelerator topology hosts; do
    [[ ${value[${option^^}]:-} ]] || die "--$option is missing"
done
[[ " $*" == *" --run_dir"[\ =]* ]] || die "--run_dir gs://BUCKET/DIR is missing: the disks of pods go with them"
if [[ $variant == tpu ]]; then
    [[ ${value[TOPOLOGY]} =~ ^[0-9]+(x[0-9]+)*$ ]] || die "--topology must be like 4x4"
    here=$((value[HOSTS] * value[CHIPS])) wanted=$((${value[TOPOLOGY]//x/*}))
    ((here == wanted)) || die "${value[TOPOLOGY]} is $wanted chips, and --hosts times --chips $here"
fi
# Pods are called NAME-slice-0-0-xxxxx, in at most 63 characters.
[[ ${value[NAME]} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name must be small letters, digits and -, 40 at most"

# A YAML list of strings; Kubernetes would fill in $(…), unless its dollar is doubled.
list=''
for word in "$@"; do
    [[ $word != *$'\n'* ]] || die "an argument with a line break: $word"
    word=${word//\\/\\\\} && word=${word//\"/\\\"} && word=${word//"\$("/"\$\$("}
    list+="${list:+, }\"$word\""
done

jobset=$(<"$(dirname "${BASH_SOURCE[0]}")/jobset-$variant.yaml")
for name in "${!value[@]}"; do
    jobset=${jobset//"\${$name}"/"${value[$name]}"}
done
jobset=${jobset//"\${ARGS}"/"[$list]"}
if [[ $dry_run ]]; then
    echo "$jobset"
else
    kubectl apply -f - <<<"$jobset"
fi
