# What the account stubs share: passwd, group and shadow in the sandbox's own /etc. Sourced by them, after record.sh.
#
# A setup that writes /etc/passwd decides who exists: unknown users are then errors. Without one there are a few system accounts, and
# commands that change a user believe that it exists.

root=${CALLS%/run/calls}
passwd=$root/etc/passwd group=$root/etc/group shadow=$root/etc/shadow
declare -A opt=()
args=()

# Makes the files that are missing.
accounts() {
    mkdir -p "$root/etc"
    if [[ ! -f $passwd ]]; then
        : > "$INPUTS/.default-accounts"
        printf '%s\n' root:x:0:0:root:/root:/bin/bash daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin bin:x:2:2:bin:/bin:/usr/sbin/nologin \
            mail:x:8:8:mail:/var/mail:/usr/sbin/nologin www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin \
            sshd:x:110:65534::/run/sshd:/usr/sbin/nologin nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin > "$passwd"
    fi
    if [[ ! -f $group ]]; then
        printf '%s\n' root:x:0: daemon:x:1: bin:x:2: adm:x:4: mail:x:8: sudo:x:27: www-data:x:33: users:x:100: wheel:x:998: docker:x:999: nogroup:x:65534: > "$group"
    fi
}

# Splits a command line into opt[letter] and args. SHORT is as for getopts; LONG names the letters: "create-home=m shell=s".
parse() { # SHORT LONG ARGS...
    local short=$1 long=" $2 " word letter rest
    shift 2
    while (($#)); do
        word=$1
        shift
        case $word in
            --) args+=("$@"); return ;;
            --*)
                rest=${word#--}
                letter=${rest%%=*}
                [[ $long == *" $letter="* ]] && { letter=${long#*" $letter="}; letter=${letter%% *}; }
                if [[ $rest == *=* ]]; then opt[$letter]=${rest#*=}
                elif [[ ${#letter} -eq 1 && $short == *"$letter:"* ]]; then opt[$letter]=${1-}; (($# == 0)) || shift
                else opt[$letter]=1; fi ;;
            -?*)
                rest=${word#-}
                while [[ -n $rest ]]; do
                    letter=${rest:0:1} rest=${rest:1}
                    if [[ $short != *"$letter:"* ]]; then opt[$letter]=1
                    elif [[ -n $rest ]]; then opt[$letter]=$rest rest=''
                    else opt[$letter]=${1-}; (($# == 0)) || shift; fi
                done ;;
            *) args+=("$word") ;;
        esac
    done
}

has_user() { accounts; grep -q -- "^$1:" "$passwd"; }
has_group() { accounts; grep -qE -- "^$1:|^[^:]*:[^:]*:$1:" "$group"; }
# For commands that change a user: is there such a one, or may we believe so?
believe_user() { has_user "$1" || [[ -f $INPUTS/.default-accounts ]]; }
die() { # STATUS MESSAGE
    echo "$name: $2" >&2
    exit "$1"
}
next_id() { # FILE FROM
    awk -F: -v n="$2" '$3 >= n && $3 < 60000 { n = $3 + 1 } END { print n }' "$1"
}
# Replaces a file's content by what awk makes of it; keeps the file itself, and so its mode.
edit() { # FILE AWK-ARGS...
    local file=$1 text
    shift
    [[ -f $file ]] || return 0
    text=$(awk -F: -v OFS=: "$@" "$file")
    printf '%s\n' "$text" | sed '/^$/d' > "$file"
}
set_field() { edit "$1" -v key="$2" -v column="$3" -v value="$4" '$1 == key { $column = value } { print }'; } # FILE NAME COLUMN VALUE
field() { [[ ! -f $1 ]] || awk -F: -v key="$2" -v column="$3" '$1 == key { print $column; exit }' "$1"; }     # FILE NAME COLUMN
join_group() { # USER GROUP
    edit "$group" -v key="$2" -v user="$1" '$1 == key && ("," $4 ",") !~ ("," user ",") { $4 = $4 == "" ? user : $4 "," user } { print }'
}
leave_group() { # USER GROUP, or every group
    edit "$group" -v key="${2-}" -v user="$1" 'key == "" || $1 == key { n = split($4, a, ","); $4 = ""; for (i = 1; i <= n; i++) if (a[i] != user && a[i] != "") $4 = $4 == "" ? a[i] : $4 "," a[i] } { print }'
}
groups_of() { # USER: names, the first group first
    local first
    first=$(field "$passwd" "$1" 4)
    awk -F: -v id="$first" '$3 == id { print $1 }' "$group"
    awk -F: -v id="$first" -v user="$1" '$3 != id && ("," $4 ",") ~ ("," user ",") { print $1 }' "$group"
}
# Sets what shadow has as a user's password; makes the line if need be.
set_password() { # USER HASH
    touch "$shadow"
    chmod 640 "$shadow"
    grep -q -- "^$1:" "$shadow" || echo "$1:!:19700:0:99999:7:::" >> "$shadow"
    set_field "$shadow" "$1" 2 "$2"
}
add_group() { # NAME [ID]
    echo "$1:x:${2:-$(next_id "$group" 1000)}:" >> "$group"
}
make_home() { # USER HOME SKELETON
    mkdir -p "$root$2"
    chmod 750 "$root$2"
    [[ ! -d ${3:-$root/etc/skel} ]] || cp -R "${3:-$root/etc/skel}/." "$root$2/"
}
