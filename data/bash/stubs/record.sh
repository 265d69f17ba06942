# Sourced first by every stub: writes down the call, and gives the answer that a setup asked for, if one did.

name=${0##*/}
{
    printf '%s' "$name"
    (($#)) && printf ' %s' "${@//$'\n'/ }"
    printf '\n'
} >> "$CALLS"
# Keeps what comes on the standard input, for programs that read it.
keep_input() {
    cat >> "$INPUTS/$name"
}
if [[ -f $ANSWERS/$name ]]; then
    source "$ANSWERS/$name"
    exit
fi
