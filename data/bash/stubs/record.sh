# Sourced first by every stub: writes down the call, and gives the answer that a setup asked for, if one did.

name=${0##*/}
recorded=$name
(($#)) && recorded+=" ${*//$'\n'/ }"
# In one piece: the two sides of a pipe write at the same time
printf '%s\n' "$recorded" >> "$CALLS"
# Keeps what comes on the standard input, for programs that read it.
keep_input() {
    cat >> "$INPUTS/$name"
}
if [[ -f $ANSWERS/$name ]]; then
    source "$ANSWERS/$name"
    exit
fi
