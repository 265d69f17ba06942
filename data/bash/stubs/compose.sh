# `docker compose` and docker-compose; $ANSWERS/.services lists the services (NAME, and the state if it is not running).
compose() {
    local verb=
    while (($#)); do
        case $1 in
            -f | --file | -p | --project-name | --env-file | --profile | --project-directory)
                [[ $1 != -f && $1 != --file ]] || [[ -e $2 || $2 == - ]] || { echo "open $PWD/$2: no such file or directory" >&2; exit 14; }
                shift 2 ;;
            --version | version) echo "Docker Compose version v2.24.5"; exit ;;
            -*) shift ;;
            *) verb=$1; shift; break ;;
        esac
    done
    case $verb in
        ps)
            if [[ " $* " == *" --services "* ]]; then
                if [[ $* == *running* ]]; then state services web db | awk 'NF && ($2 == "" || $2 == "running") { print $1 }'; else state services web db | awk 'NF { print $1 }'; fi
            elif [[ " $* " == *" -q "* || " $* " == *" --quiet "* ]]; then
                while read -r service status; do [[ -n $service ]] && [[ " $* " != *" ${*: -1} "* || ${*: -1} == -* || ${*: -1} == "$service" ]] && fake_id "container $service" 12; done < <(state services web db)
            else
                echo "NAME      IMAGE     SERVICE   STATUS"
                while read -r service status; do [[ -z $service ]] || echo "app-$service-1   app   $service   ${status:-Up 3 days}"; done < <(state services web db)
            fi ;;
        config)
            if [[ $* == *--services* ]]; then state services web db | awk '{ print $1 }'; elif [[ $* == *-q* || $* == *--quiet* ]]; then :; elif [[ $* == *--images* ]]; then echo nginx:1.25; else echo "services: {}"; fi ;;
        logs) state container-log "web-1  | server started on port 8080" "db-1   | ready to accept connections" ;;
        exec | run) [[ ! " $* " =~ \ -T\  ]] || keep_input; state exec-output ;;
        images) echo "CONTAINER   REPOSITORY   TAG   IMAGE ID   SIZE" ;;
        port) echo 0.0.0.0:8080 ;;
    esac
    return 0
}
