# What the package stubs share: which packages are installed, and for which there are updates. Sourced by them, after record.sh.
#
# A setup may write $ANSWERS/.installed (names) and $ANSWERS/.upgradable (NAME NEW-VERSION OLD-VERSION); $ANSWERS/.missing holds names
# that no repository has.

installed=$INPUTS/.installed held=$INPUTS/.held upgradable=$INPUTS/.upgradable
if [[ ! -f $installed ]]; then
    printf '%s\n' adduser apt base-files bash coreutils cron curl dash diffutils dpkg findutils grep gzip libc6 login mawk openssh-server openssl passwd sed sudo systemd tar util-linux > "$installed"
    [[ ! -f $ANSWERS/.installed ]] || cp "$ANSWERS/.installed" "$installed"
    if [[ -f $ANSWERS/.upgradable ]]; then cp "$ANSWERS/.upgradable" "$upgradable"; else printf '%s\n' 'curl 7.88.1-10+deb12u6 7.88.1-10+deb12u5' 'openssl 3.0.13-1 3.0.11-1' > "$upgradable"; fi
    touch "$held"
fi
is_installed() { grep -qxF -- "${1%%:*}" "$installed"; }
is_available() { ! grep -qsxF -- "${1%%=*}" "$ANSWERS/.missing"; }
install_names() {
    local each
    for each in "$@"; do
        each=${each##*/}
        each=${each%%=*}
        is_installed "$each" || echo "$each" >> "$installed"
        sed -i "/^$each /d" "$upgradable"
    done
}
remove_names() {
    local each
    for each in "$@"; do
        grep -vxF -- "$each" "$installed" > "$installed.new"
        mv "$installed.new" "$installed"
    done
}
# Those that an upgrade would take: held ones stay.
upgrades() { while read -r each new old; do grep -qxF -- "$each" "$held" || echo "$each $new $old"; done < "$upgradable"; }
