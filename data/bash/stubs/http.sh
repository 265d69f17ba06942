# What curl and wget share: the answer of a made-up web. Sourced by them.
#
# A setup can change it with lines in $ANSWERS/.http, the first that matches counts:
#     REGEX STATUS [TEXT]
# REGEX (extended) is held against the URL; STATUS is a number, 000 for a server that cannot be reached, or 503x2: only the first two
# times. TEXT is the body (printf %b), and for a redirect (3xx) the new address.

# Sets $http_status and $http_text for a URL.
http_look_up() { # URL
    local regex code text limit seen
    http_status=200 http_text= http_has_text=
    [[ -f $ANSWERS/.http ]] || return 0
    while read -r regex code text || [[ -n $regex ]]; do
        [[ -n $regex && $1 =~ $regex ]] || continue
        if [[ $code == *x* ]]; then
            limit=${code#*x} code=${code%x*}
            seen=$(grep -cxF -- "$regex" "$ANSWERS/.http-seen" 2> /dev/null)
            ((${seen:-0} < limit)) || continue
            printf '%s\n' "$regex" >> "$ANSWERS/.http-seen"
        fi
        http_status=$code http_text=$text
        [[ -z $text ]] || http_has_text=1
        return 0
    done < "$ANSWERS/.http"
}

http_reason() {
    case $1 in
        200) echo OK ;; 201) echo Created ;; 204) echo "No Content" ;; 301) echo "Moved Permanently" ;; 302) echo Found ;; 304) echo "Not Modified" ;;
        400) echo "Bad Request" ;; 401) echo Unauthorized ;; 403) echo Forbidden ;; 404) echo "Not Found" ;; 429) echo "Too Many Requests" ;;
        500) echo "Internal Server Error" ;; 502) echo "Bad Gateway" ;; 503) echo "Service Unavailable" ;; 504) echo "Gateway Timeout" ;; *) echo Status ;;
    esac
}

# Prints the content type that goes with a URL.
http_type() {
    case ${1%%[?#]*} in
        *.tar.gz | *.tgz | *.gz) echo application/gzip ;;
        *.zip) echo application/zip ;;
        *.json | *://api.* | */api/* | */api | *health* | *status* | *ping | *ready* | *v[1-9]/*) echo application/json ;;
        *.txt | *.sh | *.csv | *.sql | *.conf | *.md) echo text/plain ;;
        *) echo "text/html; charset=UTF-8" ;;
    esac
}

# Prints the body for a URL; the same URL has the same body each time.
http_body() { # URL
    local url=${1%%[?#]*} name folder
    if [[ -n ${http_has_text-} && ${http_status-} != 3* ]]; then
        printf '%b\n' "$http_text"
        return
    fi
    name=${url##*/}
    case $url in
        *.sha256 | *.sha256sum) printf '%s  %s\n' "$(http_body "${url%.*}" | sha256sum | cut -d ' ' -f 1)" "${name%.*}" ;;
        *.sha512 | *.sha512sum) printf '%s  %s\n' "$(http_body "${url%.*}" | sha512sum | cut -d ' ' -f 1)" "${name%.*}" ;;
        *.md5 | *.md5sum) printf '%s  %s\n' "$(http_body "${url%.*}" | md5sum | cut -d ' ' -f 1)" "${name%.*}" ;;
        *.tar.gz | *.tgz | *.tar | *.tar.bz2 | *.zip)
            name=${name%.tar*}
            name=${name%.tgz}
            name=${name%.zip}
            folder=$(mktemp -d)
            mkdir -p "$folder/$name/bin"
            echo "This is $name." > "$folder/$name/README"
            printf '#!/bin/sh\necho "%s 1.0"\n' "$name" > "$folder/$name/bin/${name%%-[0-9]*}"
            chmod 755 "$folder/$name/bin/"*
            case $url in
                *.tar | *.zip) tar -C "$folder" --sort=name --mtime=@0 -cf - "$name" ;;
                *.bz2) tar -C "$folder" --sort=name --mtime=@0 -cf - "$name" | bzip2 ;;
                *) tar -C "$folder" --sort=name --mtime=@0 -cf - "$name" | gzip -n ;;
            esac
            rm -rf "$folder" ;;
        *.gz) echo "content of ${name%.gz}" | gzip -n ;;
        *.csv) printf 'id,name,value\n1,first,10\n2,second,20\n' ;;
        *.sh) printf '#!/bin/sh\necho "Installed"\n' ;;
        *ifconfig.me* | *icanhazip.com* | *ident.me* | *ifconfig.co* | *checkip.amazonaws.com* | *ipecho.net* | *ipinfo.io/ip | *ip.me* | *myip*)
            echo 203.0.113.77 ;;
        *api.ipify.org* | *api64.ipify.org* | *api4.ipify.org*) if [[ $1 == *format=json* ]]; then printf '{"ip":"203.0.113.77"}'; else printf 203.0.113.77; fi ;;
        *ipinfo.io*) printf '{\n  "ip": "203.0.113.77",\n  "city": "Utrecht",\n  "country": "NL",\n  "org": "AS64496 Example Net"\n}\n' ;;
        *api.github.com/*/releases/latest)
            printf '{\n  "tag_name": "v1.4.2",\n  "name": "v1.4.2",\n  "draft": false,\n  "assets": []\n}\n' ;;
        *stub_status*) printf 'Active connections: 3 \nserver accepts handled requests\n 120 120 340 \nReading: 0 Writing: 1 Waiting: 2 \n' ;;
        */metrics) printf '# TYPE requests_total counter\nrequests_total 340\n' ;;
        */robots.txt) printf 'User-agent: *\nDisallow: /private/\n' ;;
        *) case $(http_type "$1") in
            application/json) echo '{"status":"ok"}' ;;
            text/plain) echo "content of $name" ;;
            text/html*) printf '<!doctype html>\n<html>\n<head><title>Welcome</title></head>\n<body>\n<h1>It works</h1>\n<a href="/about.html">About</a>\n</body>\n</html>\n' ;;
            *) echo "content of $name" ;;
        esac ;;
    esac
}

# Prints the response headers; lines end in CR LF as on the wire.
http_headers() { # URL STATUS LOCATION
    local length
    length=$(http_body "$1" | wc -c)
    printf 'HTTP/1.1 %s %s\r\n' "$2" "$(http_reason "$2")"
    printf 'Date: Mon, 04 Mar 2024 08:15:02 GMT\r\nServer: nginx\r\nContent-Type: %s\r\nContent-Length: %s\r\n' "$(http_type "$1")" "$length"
    [[ -z ${3-} ]] || printf 'Location: %s\r\n' "$3"
    printf 'Last-Modified: Fri, 01 Mar 2024 12:00:00 GMT\r\nETag: "65e1c0c0-%x"\r\nAccept-Ranges: bytes\r\nCache-Control: max-age=600\r\n' "$length"
    [[ $1 != https:* ]] || printf 'Strict-Transport-Security: max-age=31536000\r\n'
    printf 'X-Content-Type-Options: nosniff\r\nConnection: keep-alive\r\n\r\n'
}
