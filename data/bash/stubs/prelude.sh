# What setups and checks may use; sourced before them. `data/bash/stubs/README.md` describes it.

: > "$CALLS"
mkdir -p "$ANSWERS" "$INPUTS"
OUT=$TMPDIR/.out
ERR=$TMPDIR/.err

# Runs the script with these arguments and this input; leaves $status and the files $OUT and $ERR, and returns the status.
run() {
    bash "$SCRIPT" "$@" > "$OUT" 2> "$ERR"
    status=$?
    return "$status"
}

# Succeeds if a stub was called like this: an extended regular expression against "name argument argument ...".
called() {
    grep -qE -e "$1" "$CALLS"
}

# Succeeds if a database client was given such a statement: a regular expression, in any case, against "client database statement".
queried() {
    grep -qiE -e "$1" "$INPUTS/sql" 2> /dev/null
}

# Says what a stub shall do instead of its usual answer: bash on the standard input, which sees the call's arguments.
answer() {
    cat > "$ANSWERS/$1"
}
