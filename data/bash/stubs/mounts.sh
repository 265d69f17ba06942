# What the mount stubs share: a list of what is mounted. Sourced by them, after record.sh.
#
# A setup may write $ANSWERS/.mounts first: DEVICE FOLDER TYPE OPTIONS, one a line, as in /proc/mounts.

root=${CALLS%/run/calls}
table=$INPUTS/.mounts
if [[ ! -f $table ]]; then
    if [[ -f $ANSWERS/.mounts ]]; then cp "$ANSWERS/.mounts" "$table"; else
        printf '%s\n' '/dev/sda1 / ext4 rw,relatime' '/dev/sda2 /boot ext4 rw,relatime' 'tmpfs /run tmpfs rw,nosuid,nodev' > "$table"
    fi
fi
# Prints the entry of a folder or device; fails if it is not mounted.
mounted() { # NAME
    local name=$1
    [[ $name == / ]] || name=${name%/}
    awk -v key="$name" '$1 == key || $2 == key { line = $0 } END { print line; exit line == "" }' "$table" | sed '/^$/d' | grep .
}
# Prints the line of /etc/fstab for a folder or device.
from_fstab() { # NAME
    [[ -f $root/etc/fstab ]] || return 1
    awk -v key="${1%/}" '!/^[[:space:]]*#/ && ($1 == key || $2 == key) { print; found = 1; exit } END { exit !found }' "$root/etc/fstab"
}
