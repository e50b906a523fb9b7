# shellcheck shell=bash
# What the scripts here share. They are dry when $dry_run is true, and print what they would run.

shopt -s inherit_errexit # a failure inside $(...) counts
dry_run=false rest=()

# The comment at the top of the script.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# Ends with a message: fail MESSAGE [EXIT_CODE].
fail() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit "${2:-1}"
}

# The value of an option, from the arguments that are left: value "$@".
value() {
    [[ $# -ge 2 && $2 != -- ]] || fail "$1 needs a value; see --help" 2
    printf '%s' "$2"
}

# Reads options up to "--" into the variables of their names, and leaves what follows in $rest: options "NAMES" "$@".
# One that is written "name=" has a value, "name+" has one each time, for an array, and "name" becomes true.
options() {
    local names=" dry-run $1 " word variable given
    shift
    while [[ $# -gt 0 && $1 != -- ]]; do
        [[ $1 != -h && $1 != --help ]] || { usage && exit; }
        [[ $1 =~ ^--[a-z-]+$ ]] || fail "unknown option $1; see --help" 2
        word=${1#--}
        variable=${word//-/_}
        case $names in
        *" $word= "*)
            given=$(value "$@")
            printf -v "$variable" %s "$given"
            shift
            ;;
        *" $word+ "*)
            given=$(value "$@")
            local -n array=$variable
            array+=("$given")
            shift
            ;;
        *" $word "*) printf -v "$variable" true ;;
        *) fail "unknown option $1; see --help" 2 ;;
        esac
        shift
    done
    rest=("$@")
}

# Refuses what is not given: need NAME VALUE.
need() { [[ -n $2 ]] || fail "$1 is missing; see --help" 2; }

# Refuses what does not look right: check NAME VALUE REGULAR_EXPRESSION.
check() { [[ $2 =~ ^($3)$ ]] || fail "$1 must look like $3, not '$2'" 2; }

# Words as a shell reads them.
quoted() {
    local text
    printf -v text '%q ' "$@"
    printf '%s\n' "${text% }"
}

# Runs a command, or prints it.
run() { if $dry_run; then quoted "$@"; else "$@"; fi; }
