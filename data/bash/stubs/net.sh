# What the network stubs share. A setup changes the made-up network with these files, one entry a line:
#     $ANSWERS/.down     regexes (extended): hosts, HOST:PORTs and interfaces that do not answer; a whole word must match
#     $ANSWERS/.dns      NAME TYPE VALUE [SERVER]; VALUE - for "has none"; every other name has made-up records
#     $ANSWERS/.ports    what listens here: PROTOCOL ADDRESS:PORT PROCESS
#     $ANSWERS/.certs    DOMAIN DAYS: days until the certificate that openssl s_client shows expires; 60 for others

# Succeeds if HOST, or HOST:PORT, is down.
is_down() {
    [[ -f $ANSWERS/.down ]] && printf '%s\n' "$@" | grep -qxE -f "$ANSWERS/.down"
}

# Prints the values of a name's records, one a line; fails if it has none.
dns() { # NAME TYPE SERVER
    local name=${1%.} type=${2^^} server=${3-} number found='' entry kind value at
    # Both a general entry and one for this server: the server's counts
    if [[ -f $ANSWERS/.dns ]]; then
        while read -r entry kind value; do
            [[ ${entry%.} == "$name" && ${kind^^} == "$type" ]] || continue
            at=${value##* }
            if [[ $value == *" "* && $at == @* ]]; then
                [[ ${at#@} == "$server" ]] || continue
                value=${value% *}
                [[ $found == *$'\n@' ]] || found=
                found=${found%@}$value$'\n@'
            else
                [[ $found != *$'\n@' ]] || continue
                found+=$value$'\n'
            fi
        done < "$ANSWERS/.dns"
        found=${found%@}
        if [[ -n $found ]]; then
            [[ $found != -$'\n' ]] || return 1
            printf '%s' "$found"
            return 0
        fi
    fi
    [[ $name != *.invalid ]] && ! is_down "$name" || return 1
    number=$(printf '%s' "$name" | cksum)
    number=$((${number%% *} % 250 + 2))
    case $type in
        A) if [[ $name =~ ^[0-9.]+$ ]]; then echo "$name"; elif [[ $name == localhost ]]; then echo 127.0.0.1; else echo "203.0.113.$number"; fi ;;
        AAAA) printf '2001:db8::%x\n' "$number" ;;
        MX) printf '10 mail.%s.\n20 mail2.%s.\n' "$name" "$name" ;;
        NS) printf 'ns1.%s.\nns2.%s.\n' "$name" "$name" ;;
        TXT) case $name in
            _dmarc.*) echo '"v=DMARC1; p=reject; rua=mailto:dmarc@example.com"' ;;
            *._domainkey.*) echo '"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC"' ;;
            *) echo '"v=spf1 mx -all"' ;;
        esac ;;
        SOA) echo "ns1.$name. hostmaster.$name. 2024030401 7200 3600 1209600 3600" ;;
        CAA) echo '0 issue "letsencrypt.org"' ;;
        CNAME) [[ $name == www.* ]] && echo "${name#www.}." || return 1 ;;
        PTR) echo "host-${name//./-}.example.net." ;;
        *) return 1 ;;
    esac
}

# Prints what listens: PROTOCOL ADDRESS PORT PROCESS PID
listeners() {
    local protocol address process pid=600
    if [[ -f $ANSWERS/.ports ]]; then cat "$ANSWERS/.ports"; else
        printf '%s\n' 'tcp 0.0.0.0:22 sshd' 'tcp 0.0.0.0:80 nginx' 'tcp 0.0.0.0:443 nginx' 'tcp 127.0.0.1:5432 postgres' 'udp 0.0.0.0:68 dhclient'
    fi | while read -r protocol address process; do
        [[ -n $protocol ]] || continue
        ((pid += 101))
        echo "$protocol ${address%:*} ${address##*:} ${process:-unknown} $pid"
    done
}
