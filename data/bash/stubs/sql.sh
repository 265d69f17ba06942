# What the database clients share: a made-up server and its answers. Sourced by them after record.sh.
#
# A setup can change it:
#   $ANSWERS/.sql    lines REGEX ROWS, the first that matches counts. REGEX (extended, no spaces, any case) is held against
#                    "CLIENT DATABASE STATEMENT"; ROWS (printf %b) has columns separated by | and rows by \n; nothing means no rows.
#                    ROWS that open with ! are an error message.
#   $ANSWERS/.fail   lines REGEX against "CLIENT ARGUMENTS": such a call fails, as with a server that refuses it.
#   $INPUTS/.databases, $INPUTS/.migrations   names that exist already: databases, and entries of schema_migrations.
# Every statement that a client is given goes to $INPUTS/sql, one a line: "CLIENT DATABASE STATEMENT".

# The statements of SQL are the same in any case
shopt -s nocasematch

if [[ -f $ANSWERS/.fail ]]; then
    while IFS= read -r sql_regex; do
        if [[ "$name $*" =~ $sql_regex ]]; then
            echo "$name: error: connection to server failed: FATAL: the database is not accepting this request" >&2
            exit 1
        fi
    done < "$ANSWERS/.fail"
fi

# Names of the databases that are there, without the server's own.
sql_databases() {
    if [[ -f $INPUTS/.databases ]]; then cat "$INPUTS/.databases"; else printf '%s\n' app shop; fi
}
sql_add_database() { sql_databases > "$INPUTS/.databases.new"; echo "$1" >> "$INPUTS/.databases.new"; sort -u "$INPUTS/.databases.new" > "$INPUTS/.databases"; rm "$INPUTS/.databases.new"; }
sql_drop_database() { sql_databases | grep -vxF -- "$1" > "$INPUTS/.databases.new"; mv "$INPUTS/.databases.new" "$INPUTS/.databases"; }

# Prints the name of a database in a URL or a connection string, or what else it is given.
sql_database_of() {
    local text=$1
    case $text in
        *://*) text=${text#*://}; [[ $text == */* ]] && text=${text#*/} || text=''; text=${text%%\?*} ;;
        *dbname=*) text=${text#*dbname=}; text=${text%% *} ;;
        *=*) text='' ;;
    esac
    echo "${text:--}"
}

# Prints the statements of the text on the standard input, one a line, without comments.
sql_statements() {
    awk '
        copying { if ($0 == "\\.") copying = 0; next }
        { sub(/^[ \t]+/, ""); sub(/[ \t\r]+$/, ""); sub(/[ \t]--( .*)?$/, "") }
        /^--/ || /^$/ || /^#/ { next }
        buffer == "" && /^[\\.]/ { print; next }
        {
            gsub(/\\[Gg]($|;)/, "\\G;")
            gsub(/[ \t]+/, " ")
            buffer = buffer (buffer == "" ? "" : " ") $0
            while ((i = index(buffer, ";")) > 0) {
                part = substr(buffer, 1, i - 1)
                buffer = substr(buffer, i + 1)
                sub(/^ +/, "", buffer)
                if (part ~ /[^ ]/) print part
                if (tolower(part) ~ /^copy .* from stdin/ && tolower(part) !~ /csv/) copying = 1
            }
        }
        END { if (buffer ~ /[^ ]/) print buffer }
    '
}

# The tables that a made-up database has.
sql_tables() { printf '%s\n' customers orders products; }

# Answers one statement: leaves $sql_rows (columns separated by |), $sql_header and $sql_tag; fails with $sql_error.
sql_answer() { # DATABASE STATEMENT
    local database=$1 statement=$2 regex rows where word=
    sql_rows='' sql_header='' sql_tag='' sql_error='' sql_any=''
    printf '%s %s %s\n' "$name" "$database" "$statement" >> "$INPUTS/sql"
    statement=${statement%\\G}
    if [[ -f $ANSWERS/.sql ]]; then
        while read -r regex rows || [[ -n $regex ]]; do
            [[ -n $regex && "$name $database $statement" =~ $regex ]] || continue
            if [[ $rows == '!'* ]]; then
                sql_error=${rows#!}
                return 1
            fi
            sql_rows=$(printf '%b' "$rows") sql_any=1
            sql_header=$(STATEMENT=$statement DATABASE=$database awk -f "${BASH_SOURCE[0]%/*}/sql.awk" | head -n 1)
            sql_tag="SELECT 1"
            return 0
        done < "$ANSWERS/.sql"
    fi
    word=${statement%%[ (]*}
    case $statement in
        select*schema_migrations* | select*from*migrations*)
            sql_header=version
            where=$(sed -nE "s/.*(=|IN \() *'([^']*)'.*/\2/p" <<< "$statement")
            if [[ -n $where ]]; then
                rows=$(grep -xF -- "$where" "$INPUTS/.migrations" 2> /dev/null)
                if [[ $statement == *count\(* ]]; then
                    sql_rows=$([[ -n $rows ]] && echo 1 || echo 0)
                elif [[ $statement == *exists* ]]; then
                    sql_rows=$([[ -n $rows ]] && echo t || echo f)
                elif [[ $statement == 'select 1'* && -n $rows ]]; then
                    sql_rows=1
                else
                    sql_rows=$rows
                fi
            else
                sql_rows=$(cat "$INPUTS/.migrations" 2> /dev/null)
                [[ $statement != *max\(* && $statement != *'desc limit 1'* ]] || sql_rows=$(sort <<< "$sql_rows" | tail -n 1)
                [[ $statement != *count\(* ]] || sql_rows=$(grep -c . <<< "$sql_rows")
            fi ;;
        insert*migrations*values*) sed -nE "s/.*values *\( *'([^']*)'.*/\1/Ip" <<< "$statement" >> "$INPUTS/.migrations"; sql_tag="INSERT 0 1" ;;
        select*from*pg_database*=* | select*from*schemata*=* | select*from*pg_roles*=* | select*from*pg_user*=* | select*from*mysql.user*=* | select*from*sqlite_master*name*=* | show\ databases\ like*)
            sql_header=name
            where=$(sed -nE "s/.*(=|LIKE) *'([^']*)'.*/\2/Ip" <<< "$statement")
            rows=''
            if [[ $statement == *pg_database_size* ]]; then
                sql_header=size sql_rows=$([[ $statement == *pretty* ]] && echo '148 MB' || echo 155189248)
            elif [[ $statement == *sqlite_master* ]]; then
                rows=$(sql_tables | grep -xF -- "$where")
            elif [[ $statement != *roles* && $statement != *user* ]]; then
                rows=$(sql_databases | grep -xF -- "$where")
            fi
            if [[ $statement == 'select exists'* ]]; then sql_rows=$([[ -n $rows ]] && echo t || echo f)
            elif [[ $statement == *count\(* ]]; then sql_rows=$(grep -c . <<< "$rows"); elif [[ -n $rows ]]; then
                [[ $statement == 'select 1'* ]] && sql_rows=1 || sql_rows=${sql_rows:-$rows}
            fi ;;
        select\ datname\ from\ pg_database*) sql_header=datname sql_rows=$(sql_databases; [[ $statement == *"'postgres'"* ]] || echo postgres) ;;
        show\ databases* | show\ schemas*) sql_header=Database sql_rows=$(sql_databases; printf '%s\n' information_schema mysql performance_schema sys) ;;
        select\ schema_name\ from\ information_schema.schemata*) sql_header=SCHEMA_NAME sql_rows=$(sql_databases) ;;
        show\ tables* | select\ table_name\ from\ information_schema.tables* | select\ tablename\ from\ pg_tables* | select\ tablename\ from\ pg_catalog.pg_tables* | select\ name\ from\ sqlite_master* | select\ name\ from\ sqlite_schema*)
            sql_header=table_name sql_rows=$(sql_tables) ;;
        show\ *processlist*) sql_header='Id|User|Host|db|Command|Time|State|Info'
            sql_rows=$'11|app|10.0.0.7:51234|shop|Sleep|812||NULL\n12|app|10.0.0.8:51300|shop|Query|95|Sending data|SELECT * FROM orders\n13|root|localhost|NULL|Query|0|init|SHOW PROCESSLIST' ;;
        show\ slave\ status* | show\ replica\ status*) sql_header='Slave_IO_State|Master_Host|Slave_IO_Running|Slave_SQL_Running|Seconds_Behind_Master|Last_Error'
            [[ $statement != *replica* ]] || sql_header='Replica_IO_State|Source_Host|Replica_IO_Running|Replica_SQL_Running|Seconds_Behind_Source|Last_Error'
            sql_rows='Waiting for master to send event|10.0.0.5|Yes|Yes|3|' ;;
        show\ *status*) sql_header='Variable_name|Value'
            where=$(sed -nE "s/.*(=|LIKE) *'([^']*)'.*/\2/Ip" <<< "$statement")
            sql_rows="${where:-Threads_connected}|17" ;;
        show\ *variables*) sql_header='Variable_name|Value'
            where=$(sed -nE "s/.*(=|LIKE) *'([^']*)'.*/\2/Ip" <<< "$statement")
            case $where in
                max_connections | '') sql_rows='max_connections|151' ;;
                datadir) sql_rows='datadir|/var/lib/mysql/' ;;
                version) sql_rows='version|8.0.36' ;;
                *) sql_rows="$where|ON" ;;
            esac ;;
        show\ max_connections*) sql_header=max_connections sql_rows=100 ;;
        show\ create\ table*) sql_header='Table|Create Table' sql_rows='orders|CREATE TABLE orders (id int NOT NULL, PRIMARY KEY (id))' ;;
        show\ server_version*) sql_header=server_version sql_rows=16.2 ;;
        show*) sql_header=${statement##* } sql_rows=on ;;
        describe* | desc*) sql_header='Field|Type|Null|Key|Default|Extra' sql_rows=$'id|int|NO|PRI|NULL|auto_increment\nname|varchar(100)|YES||NULL|' ;;
        pragma*integrity_check* | pragma*quick_check*) sql_rows=ok ;;
        pragma*foreign_key_check*) ;;
        pragma*wal_checkpoint*) sql_rows='0|0|0' ;;
        pragma*page_count) sql_rows=120 ;;
        pragma*freelist_count) sql_rows=9 ;;
        pragma*page_size) sql_rows=4096 ;;
        pragma*user_version) sql_rows=0 ;;
        pragma*journal_mode*) sql_rows=wal ;;
        pragma*table_info*) sql_rows=$'0|id|INTEGER|0||1\n1|name|TEXT|0||0' ;;
        pragma*) ;;
        optimize* | analyze\ table* | check\ table* | repair\ table*) sql_header='Table|Op|Msg_type|Msg_text'
            word=${statement##* } sql_rows="$database.${word//\`/}|${statement%% *}|status|OK" ;;
        select* | with*select* | values* | table\ *)
            rows=$(STATEMENT=$statement DATABASE=$database awk -f "${BASH_SOURCE[0]%/*}/sql.awk")
            sql_header=${rows%%$'\n'*}
            [[ $rows != *$'\n'* ]] || sql_rows=${rows#*$'\n'} ;;
        create\ database*)
            word=${statement#create database } word=${word#if not exists } word=${word%% *}
            word=${word//[\`\"]/}
            [[ -z $word ]] || sql_add_database "$word"
            sql_tag="CREATE DATABASE" ;;
        drop\ database*)
            word=${statement#drop database } word=${word#if exists } word=${word%% *}
            sql_drop_database "${word//[\`\"]/}"
            sql_tag="DROP DATABASE" ;;
        insert* | replace*) sql_tag="INSERT 0 1" ;;
        delete*returning* | update*returning*) sql_tag="${word^^} 0" sql_header=id ;;
        delete*) sql_tag="DELETE 0" ;;
        update*) sql_tag="UPDATE 3" ;;
        create* | alter* | drop*) sql_tag=${statement^^} sql_tag=$(cut -d ' ' -f 1,2 <<< "$sql_tag") ;;
        truncate*) sql_tag="TRUNCATE TABLE" ;;
        explain*) sql_header="QUERY PLAN" sql_rows="Seq Scan on orders  (cost=0.00..18.50 rows=850 width=68)" ;;
        begin* | commit* | rollback* | start* | set* | use* | analyze* | analyse* | vacuum* | reindex* | cluster* | grant* | revoke* | copy* | comment* | lock* | unlock* | \
            flush* | kill* | do* | call* | prepare* | execute* | deallocate* | declare* | fetch* | close* | load* | attach* | detach* | savepoint* | release* | refresh* | rename* | \
            purge* | change* | reset* | stop* | notify* | listen* | discard* | checkpoint* | reassign* | merge* | import* | security* | end* | if* | else* | elsif* | loop* | for* | while* | return* | raise* | \
            delimiter* | perform* | '('* | '/*'* | source* | abort* | exit* | quit* | '$$'* | language* | with*)
            sql_tag=${word^^} ;;
        *)
            sql_error="syntax error at or near \"${statement%% *}\""
            return 1 ;;
    esac
    if [[ -n $sql_header ]]; then sql_tag="SELECT $(grep -c . <<< "$sql_rows")"; fi
    return 0
}

# Prints $sql_rows with another separator, and a header if asked for.
sql_table() { # SEPARATOR HEADER?
    [[ -z ${2-} || -z $sql_header ]] || printf '%s\n' "${sql_header//|/$1}"
    [[ -z $sql_rows ]] || printf '%s\n' "${sql_rows//|/$1}"
}
sql_csv() { # HEADER?
    { [[ -z ${1-} || -z $sql_header ]] || printf '%s\n' "$sql_header"; [[ -z $sql_rows ]] || printf '%s\n' "$sql_rows"; } |
        awk -F '|' '{ for (i = 1; i <= NF; i++) { v = $i; if (v ~ /[,"]/) { gsub(/"/, "\"\"", v); v = "\"" v "\"" } printf "%s%s", v, (i < NF ? "," : "\n") } }'
}
# Prints a dump of some tables: DATABASE WHAT(all, schema, data) TABLE...
sql_dump_tables() {
    local database=$1 what=$2 table
    shift 2
    for table in "$@"; do
        table=${table##*.}
        if [[ $what != data ]]; then
            printf '\n--\n-- Table structure for table %s\n--\n\nCREATE TABLE %s (\n    id integer NOT NULL,\n    name text\n);\n' "$table" "$table"
        fi
        if [[ $what != schema ]]; then
            printf "\n--\n-- Data for table %s\n--\n\nINSERT INTO %s VALUES (1,'first of %s');\nINSERT INTO %s VALUES (2,'second of %s');\n" "$table" "$table" "$database" "$table" "$database"
        fi
    done
}
