# What the stubs of git, docker, kubectl and the build tools share. Sourced by them.
#
# A setup can make calls fail with lines in $ANSWERS/.fail: an extended regular expression against "name argument ...", and before it
# 2x if only the first two such calls shall fail.

may_fail() {
    local line regex limit seen
    [[ -f $ANSWERS/.fail ]] || return 0
    while IFS= read -r line; do
        [[ -n $line ]] || continue
        regex=$line limit=
        [[ $line =~ ^([0-9]+)x\ (.*)$ ]] && limit=${BASH_REMATCH[1]} regex=${BASH_REMATCH[2]}
        [[ "$name $*" =~ $regex ]] || continue
        if [[ -n $limit ]]; then
            seen=$(grep -cxF -- "$line" "$ANSWERS/.fail-seen" 2> /dev/null)
            ((${seen:-0} < limit)) || continue
            printf '%s\n' "$line" >> "$ANSWERS/.fail-seen"
        fi
        echo "$name: error: '${1-}' failed" >&2
        exit 1
    done < "$ANSWERS/.fail"
}
may_fail "$@"

# Prints $ANSWERS/.NAME if a setup or an earlier call made it, else the lines given.
state() { # NAME LINE...
    if [[ -f $ANSWERS/.$1 ]]; then cat "$ANSWERS/.$1"; elif (($# > 1)); then printf '%s\n' "${@:2}"; fi
}
# Adds a line to a state; the usual lines stay.
state_add() { # NAME LINE USUAL_LINE...
    local all
    all=$(state "$1" "${@:3}")
    printf '%s\n' ${all:+"$all"} "$2" > "$ANSWERS/.$1"
}
# Removes the lines whose first word is this one.
state_drop() { # NAME WORD USUAL_LINE...
    local all
    all=$(state "$1" "${@:3}" | awk -v word="$2" '$1 != word')
    printf '%s' "${all:+$all$'\n'}" > "$ANSWERS/.$1"
}
# A number that looks like a hash and is the same for the same text.
fake_id() { # TEXT LENGTH
    printf '%s' "$1" | sha256sum | cut -c "1-$2"
}
# Makes a file with its folder.
make_file() { # PATH TEXT
    mkdir -p "$(dirname -- "$1")" && printf '%s\n' "$2" > "$1"
}
