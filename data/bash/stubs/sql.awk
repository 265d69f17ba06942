# Prints a header and made-up rows for the SELECT in $STATEMENT, columns separated by |; their names decide what the values look like.
function trim(s) { gsub(/^ +| +$/, "", s); return s }
function one(list, r,   parts, n) { n = split(list, parts, ","); return parts[(r - 1) % n + 1] }
function value(e, r,   l) {
    l = tolower(e)
    if (e ~ /^'[^']*'$/) return substr(e, 2, length(e) - 2)
    if (e ~ /^-?[0-9.]+$/) return e
    if (l ~ /^count ?\(/) return r == 1 ? 42 : 7
    if (l ~ /size_pretty/) return one("148 MB,96 MB", r)
    if (l ~ /current_database|database\(\)/) return ENVIRON["DATABASE"]
    if (l ~ /version\(\)/) return "PostgreSQL 16.2 on x86_64-pc-linux-gnu"
    if (l ~ /is_in_recovery/) return "f"
    if (l ~ /terminate_backend|cancel_backend|exists/) return "t"
    if (l ~ /row_count\(\)|changes\(\)/) return 0
    if (l ~ /max_connections/) return 100
    if (l ~ /(lag|delay|behind|extract|epoch)/) return 3
    if (l ~ /(size|length|bytes)/) return l ~ /(1024|mb)/ ? one("148.0,96.5", r) : one("155189248,98304", r)
    if (l ~ /(datname|schema_name|table_schema|database)/) return one("shop,app", r)
    if (l ~ /(table|relname)/) return one("orders,customers", r)
    if (l ~ /index/) return one("orders_pkey,orders_name_idx", r)
    if (l ~ /(rows|tup|scan|calls|total|sum|count|n_)/) return one("1204,310", r)
    if (l ~ /pid/) return 4710 + r
    if (l ~ /(usename|rolname|user)/) return one("app,reporting", r)
    if (l ~ /(addr|host)/) return one("10.0.0.7,10.0.0.8", r)
    if (l ~ /(state|status)/) return one("active,idle", r)
    if (l ~ /(query|info)/) return "SELECT * FROM orders"
    if (l ~ /(duration|age|runtime|time)/) return one("00:12:31,00:07:02", r)
    if (l ~ /(date|created|updated|_at$|now\(|current_)/) return one("2024-03-04 08:15:02,2024-03-05 10:20:30", r)
    if (l ~ /(max|min|avg) ?\(/) return 42
    if (l ~ /(^|[._])id$/) return r
    if (l ~ /mail/) return one("anna@example.com,boris@example.com", r)
    if (l ~ /(price|amount)/) return one("19.90,5.00", r)
    return one("first,second", r)
}
BEGIN {
    s = ENVIRON["STATEMENT"]
    low = tolower(s)
    # The list of columns is what stands between the first SELECT and its FROM, outside brackets
    start = match(low, /(^|[ (])select /) ? RSTART + RLENGTH : 1
    depth = 0; n = 1; quote = 0
    for (i = start; i <= length(s); i++) {
        c = substr(s, i, 1)
        if (c == "'") quote = !quote
        if (!quote) {
            if (c == "(") depth++
            if (c == ")" && --depth < 0) break
            if (depth == 0 && c == ",") { n++; continue }
            if (depth == 0 && (substr(low, i, 6) == " from ")) break
        }
        cols[n] = cols[n] c
    }
    rest = substr(low, i)
    rows = rest ~ /^ from / ? 2 : 1
    sums = 1
    header = ""
    for (k = 1; k <= n; k++) {
        e = trim(cols[k])
        sub(/^[Dd][Ii][Ss][Tt][Ii][Nn][Cc][Tt] /, "", e)
        if (e == "*" || e ~ /\.\*$/) { e = ""; star = 1 }
        name = e
        if (match(tolower(e), / as "?[a-z_0-9 ]+"?$/)) { name = substr(e, RSTART + 4); gsub(/"/, "", name); e = substr(e, 1, RSTART - 1) }
        else if (match(e, /\([^()]*\)$/) && match(e, /^[A-Za-z_]+ ?\(/)) { name = substr(e, 1, RLENGTH - 1) }
        else if (e !~ /[ '(]/) sub(/.*\./, "", name)
        else name = "?column?"
        if (star) { kinds[k] = "*"; name = "id|name"; star = 0 } else kinds[k] = e
        names[k] = name
        if (tolower(e) !~ /^(count|sum|max|min|avg|coalesce|pg_size_pretty\(sum|round\(sum) ?\(?/) sums = 0
        header = header (k > 1 ? "|" : "") name
    }
    if (sums && rest !~ /group by/) rows = 1
    if (rest ~ /limit 1$/) rows = 1
    print header
    for (r = 1; r <= rows; r++) {
        line = ""
        for (k = 1; k <= n; k++) {
            e = kinds[k]
            if (e == "*") v = r "|" one("first,second", r)
            else if (names[k] == "?column?" || tolower(e) ~ /^('|-?[0-9])|count ?\(|size_pretty|current_database|version\(|recovery|exists|terminate/) v = value(e, r)
            else { v = value(names[k], r); if (v == "first" || v == "second") v = value(e, r) }
            line = line (k > 1 ? "|" : "") v
        }
        print line
    }
}
