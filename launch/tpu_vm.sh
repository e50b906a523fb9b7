#!/usr/bin/env bash
# Runs a command on all workers of a Cloud TPU VM, which is created if there is none: copies this package and its
# configs, installs kdist[tpu], starts the command, follows what it prints, and starts it again when it was preempted
# and saved (exit code 42). The command goes on when the connection is lost; Ctrl-C tells it to save and end.
#
# Usage: launch/tpu_vm.sh OPTIONS -- COMMAND...
#   --name NAME           of the TPU VM, and of the queued resource
#   --project PROJECT, --zone ZONE
#   --type TYPE           accelerator type, as in v5litepod-16; needed only to create one
#   --runtime VERSION     runtime version, as in v2-alpha-tpuv5-lite; needed only to create one
#   --queued              ask for a queued resource, and wait until there is one
#   --valid-until TIME    give the queued resource up after so long, as in 6h
#   --spot, --reserved    as gcloud has them
#   --copy PATH           copy this too; may be given several times
#   --restart N           start again up to N times; 100 by default. COMMAND should say --resume
#   --delete              at the end delete the TPU VM, if it was this call that created it; else it is left, and costs
#   --dry-run             print every gcloud command that would be run, and run none
#
#   launch/tpu_vm.sh --name lm --project p --zone us-west4-a --type v5litepod-16 --runtime v2-alpha-tpuv5-lite \
#       --queued --spot --delete -- kdist train configs/char_lm.py --run-dir /mnt/shared/lm --resume
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"

poll=${KDIST_POLL_SECONDS:-20} # between two questions to the service
tries=5                        # that the workers may be out of reach in a row

tpus() { run gcloud compute tpus "$@" "--zone=$zone" "--project=$project"; }
on_workers() { tpus tpu-vm ssh "$name" --worker=all "--command=$1"; }
comment() { if $dry_run; then printf '# %s\n' "$1"; fi; }
say() { $dry_run || printf 'tpu_vm.sh: %s\n' "$1" >&2; }

# The state of the TPU VM; empty if there is none.
state() {
    local said
    if said=$(tpus tpu-vm describe "$name" '--format=value(state)' 2>&1); then
        printf '%s' "$said"
    elif [[ $said != *NOT_FOUND* ]]; then
        fail "cannot ask for $name in $zone of $project: $said"
    fi
}

create() {
    local -a common=("--accelerator-type=$type")
    if $spot; then common+=(--spot); fi
    if $reserved; then common+=(--reserved); fi
    need --type "$type"
    need --runtime "$runtime"
    created=true
    if ! $queued; then
        tpus tpu-vm create "$name" "--version=$runtime" "${common[@]}" || fail "gcloud could not create $name"
        return
    fi
    [[ -z $valid_until ]] || common+=("--valid-until-duration=$valid_until")
    tpus queued-resources create "$name" "--node-id=$name" "--runtime-version=$runtime" "${common[@]}" ||
        fail "gcloud could not ask for $name"
    comment "again and again, until it is ACTIVE:"
    local now=''
    while :; do
        now=$(tpus queued-resources describe "$name" '--format=value(state.state)') || fail "cannot ask for $name"
        if $dry_run; then printf '%s\n' "$now" && return; fi
        say "queued resource $name is $now"
        case $now in
        ACTIVE) return ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING) fail "there will be no TPU VM: the queued resource is $now" ;;
        esac
        sleep "$poll"
    done
}

# Deletes what this call created, if that was asked for.
# shellcheck disable=SC2329 # a trap runs it
clean_up() {
    local -a deletion=(tpu-vm delete "$name" --quiet)
    $queued && deletion=(queued-resources delete "$name" --force --quiet)
    [[ -z $build ]] || rm -rf "$build"
    if $created && $delete; then
        comment "at the end, however it came about:"
        tpus "${deletion[@]}" || say "COULD NOT DELETE $name, which goes on to cost money"
    elif $created; then
        say "$name is left, and goes on to cost money. Delete it: $(quoted gcloud compute tpus "${deletion[@]}" \
            "--zone=$zone" "--project=$project")"
    elif $delete; then
        say "$name was there before, and is not deleted"
    fi
}

install() {
    build=$(mktemp -d)
    run python3 -m pip --quiet wheel --no-deps --wheel-dir "$build" "$here/.." || fail "pip could not build a wheel"
    on_workers 'mkdir -p ~/kdist-run && rm -f ~/kdist-run/kdist-*.whl' || fail "the workers of $name are out of reach; \
for several of them ssh-agent must have the key: ssh-add ~/.ssh/google_compute_engine"
    local -a wheel=("$build"/kdist-*.whl) # in a dry run none was built, and the pattern stands for it
    tpus tpu-vm scp --recurse "${wheel[@]}" "$here/../configs" "${copy[@]}" "$name:kdist-run/" \
        --worker=all || fail "could not copy to the workers"
    # The system's Python may be older than JAX's oldest, so uv brings one.
    # shellcheck disable=SC2016 # the workers expand it
    on_workers 'set -e; cd ~/kdist-run; PATH=~/.local/bin:$PATH
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --quiet --allow-existing --python 3.12 venv
uv pip install --quiet --python venv/bin/python --reinstall-package kdist "$(echo kdist-*.whl)[tpu]"' ||
        fail "could not install kdist[tpu] on the workers"
}

# Starts the command on all workers: start LOG COMMAND...
start() {
    local log=$1 script
    shift
    script="$(quoted "$@") >$log 2>&1 </dev/null & echo \$! >pid; wait \$!; echo \$? >code"
    on_workers "cd ~/kdist-run || exit; rm -f pid code; export PATH=\$PWD/venv/bin:\$PATH
nohup setsid bash -c $(quoted "$script") >/dev/null 2>&1 </dev/null &" || fail "could not start the command"
}

# What the workers print until the command ends, from this line of the log on: show LOG LINE.
show() {
    on_workers "cd ~/kdist-run || exit; until [ -s pid ]; do sleep 0.1; done
tail -n $2 -F -s 0.2 --pid=\$(cat pid) $1 2>/dev/null | sed -u \"s/^/[\$(hostname | sed 's/.*-//')] /\""
}

# Shows what the workers print, until the command has ended on all; its exit code is in $code then.
follow() {
    local log=$1 failed=0 said codes lines='+1' whole
    while :; do
        whole=true
        show "$log" "$lines" || whole=false
        said=$(on_workers "cd ~/kdist-run && for n in 1 2 3 4 5; do [ -s code ] && break; sleep 0.2; done
echo exit code: \$(cat code 2>/dev/null || echo none)") || said=''
        if $dry_run; then printf '%s\n' "$said" && return; fi
        codes=$(sed -n 's/^exit code: //p' <<<"$said")
        if [[ -n $codes && $codes != *none* ]]; then
            $whole || show "$log" 10 || true # what came since the connection was lost
            code_of "$codes"
            return
        fi
        if [[ -n $codes ]]; then failed=0; else failed=$((failed + 1)); fi
        [[ $failed -lt $tries ]] || fail "lost the workers of $name, whose state is now: $(state)"
        lines=10
        sleep "$poll"
    done
}

# Sets $code from the exit codes of all workers: 43 goes before other failures, which follow from it, those before 42.
code_of() {
    local one
    code=0
    for one in $1; do
        if [[ $one == 43 || $code == 0 || ($code == 42 && $one != 0) ]]; then code=$one; fi
    done
}

# shellcheck disable=SC2329 # a trap runs it
interrupted() {
    trap - INT TERM # the second one ends this script
    stopped=true
    say "tells the command to save and end"
    # shellcheck disable=SC2016 # the workers expand it
    on_workers 'kill -TERM "$(cat ~/kdist-run/pid)"' || say "could not tell all workers"
}

name='' project='' zone='' type='' runtime='' valid_until='' copy=() restart=100
queued=false spot=false reserved=false delete=false
options 'name= project= zone= type= runtime= valid-until= copy+ restart= queued spot reserved delete' "$@"
set -- "${rest[@]}"
created=false build='' code=0 stopped=false
for option in name project zone; do need "--$option" "${!option}"; done
check --name "$name" '[a-z]([a-z0-9-]{0,61}[a-z0-9])?'
check --restart "$restart" '[0-9]+'
[[ ${1:-} == -- && $# -gt 1 ]] || fail "what to run is missing: tpu_vm.sh OPTIONS -- COMMAND" 2
shift
for path in "${copy[@]}"; do [[ -e $path ]] || fail "--copy $path: there is no such file" 2; done
$dry_run || command -v gcloud >/dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"

now=$(state)
trap clean_up EXIT
if $dry_run; then
    printf '%s\n' "$now"
    comment "if there is none:"
    if [[ -n $type ]]; then create; else comment "an error, since --type is not given"; fi
elif [[ -z $now ]]; then
    create
elif [[ $now != READY ]]; then
    fail "$name is there, and is $now; it must be READY"
fi
install
trap interrupted INT TERM
for ((attempt = 0; ; attempt++)); do
    start "log.$attempt" "$@"
    follow "log.$attempt"
    if $dry_run; then
        comment "and so again, up to $restart times, as long as the exit code is 42"
        break
    fi
    if [[ $code != 42 || $attempt -ge $restart ]] || $stopped; then break; fi
    say "preempted and saved; starts again ($((attempt + 1)) of $restart)"
done
exit "$code"
