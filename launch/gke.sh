#!/usr/bin/env bash
# Runs a command on TPU slices of a GKE cluster, as a JobSet that starts again when the run was preempted and saved
# (exit code 42) or lost a node. kubectl must be set up for the cluster, and JobSet installed in it.
#
# Usage: launch/gke.sh apply OPTIONS -- COMMAND...
#        launch/gke.sh logs | delete --name NAME [--namespace NAMESPACE] [--dry-run]
#   --name NAME             of the JobSet
#   --namespace NAMESPACE   "default" by default
#   --image IMAGE           has kdist[tpu], the configs, and sh, getent and timeout
#   --accelerator TYPE      label of the nodes, as in tpu-v5-lite-podslice or tpu-v6e-slice
#   --topology TOPOLOGY     of a slice, as in 4x4
#   --hosts N               hosts, that is nodes, of a slice: chips of the topology over those of a node
#   --chips N               chips of a node; 4 by default
#   --slices N              how many slices; 1 by default
#   --restart N             start again up to N times; 100 by default. COMMAND should say --resume
#   --grace SECONDS         from SIGTERM until a pod is killed, which must be enough to save; 300 by default
#   --dry-run               print the manifest and the commands, and run nothing
#
#   launch/gke.sh apply --name lm --image gcr.io/p/kdist --accelerator tpu-v5-lite-podslice --topology 4x4 --hosts 4 \
#       -- kdist train configs/char_lm.py --run-dir /shared/runs/lm --resume
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"
shopt -u patsub_replacement 2>/dev/null || true # from bash 5.2 on, it would give a "&" in a value a meaning

# A word as a string of YAML, which Kubernetes takes as it is.
string() {
    local text=$1
    [[ $text != *[$'\x01'-$'\x08'$'\x0b'-$'\x1f'$'\x7f']* ]] || fail "the command has a control character" 2
    text=${text//\\/\\\\} text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
    printf '"%s"' "${text//\$/\$\$}"
}

# The manifest.
render() {
    local text words separator=$'\n                    - '
    text=$(<"$here/gke_jobset.yaml")
    local -A values=(
        [NAME]=$name [NAMESPACE]=$namespace [IMAGE]=$image [ACCELERATOR]=$accelerator [TOPOLOGY]=$topology
        [HOSTS]=$hosts [CHIPS]=$chips [SLICES]=$slices [PROCESSES]=$((slices * hosts))
        [RESTARTS]=$restart [GRACE]=$grace
    )
    local key word
    for key in "${!values[@]}"; do text=${text//__${key}__/${values[$key]}}; done
    for word in "$@"; do words+=$separator$(string "$word"); done
    printf '%s\n' "${text//__COMMAND__/${words#"$separator"}}"
}

action=${1:-}
[[ $# -eq 0 ]] || shift
name='' namespace=default image='' accelerator='' topology='' hosts='' chips=4 slices=1 restart=100 grace=300
[[ $action != -h && $action != --help ]] || { usage && exit; }
[[ $action =~ ^(apply|logs|delete)$ ]] || fail "expected apply, logs or delete, not '$action'; see --help" 2
options 'name= namespace= image= accelerator= topology= hosts= chips= slices= restart= grace=' "$@"
set -- "${rest[@]}"
need --name "$name"
check --name "$name" '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' # pods get it with 20 characters more, 63 in all
check --namespace "$namespace" '[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?'
$dry_run || command -v kubectl >/dev/null || fail "kubectl is not installed"

case $action in
apply)
    [[ ${1:-} == -- && $# -gt 1 ]] || fail "what to run is missing: gke.sh apply OPTIONS -- COMMAND" 2
    shift
    for option in image accelerator topology hosts; do need "--$option" "${!option}"; done
    check --image "$image" '[A-Za-z0-9./:@_-]+'
    check --accelerator "$accelerator" '[A-Za-z0-9-]+'
    check --topology "$topology" '[0-9]+(x[0-9]+)+'
    for option in hosts chips slices; do check "--$option" "${!option}" '[1-9][0-9]*'; done
    for option in restart grace; do check "--$option" "${!option}" '[0-9]+'; done
    total=$((${topology//x/*}))
    [[ $((hosts * chips)) -eq $total ]] ||
        fail "--hosts $hosts of --chips $chips are $((hosts * chips)) chips, and --topology $topology has $total" 2
    manifest=$(render "$@")
    if $dry_run; then printf '%s\n---\n' "$manifest"; fi
    run kubectl apply --filename=- <<<"$manifest"
    ;;
logs)
    run kubectl logs "--namespace=$namespace" "--selector=jobset.sigs.k8s.io/jobset-name=$name" --container=kdist \
        --follow --prefix --tail=-1 --max-log-requests=1000
    ;;
delete)
    run kubectl delete jobset "$name" "--namespace=$namespace"
    ;;
esac
