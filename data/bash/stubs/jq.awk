# The stub of jq: JSON values are nodes in arrays, a filter is evaluated while it is parsed into numbered expressions.
# A result is a string of node numbers, each with a blank before it.

function fail(message, code) {
    printf "jq: error%s: %s\n", (code == 3 ? "" : " (at <stdin>:1)"), message > "/dev/stderr"
    exit_code = code
    exit code
}

# JSON values. T: type, V: text, N: number of members, K: key, M: member
function new(type, value) { nodes++; T[nodes] = type; V[nodes] = value; N[nodes] = 0; return nodes }
function add_member(node, key, member,    i) {
    if (T[node] == "object")
        for (i = 1; i <= N[node]; i++) if (K[node, i] == key) { M[node, i] = member; return }
    N[node]++; K[node, N[node]] = key; M[node, N[node]] = member
}
function unquote(text,    out, at, c, h) {
    text = substr(text, 2, length(text) - 2)
    if (index(text, "\\") == 0) return text
    out = ""
    for (at = 1; at <= length(text); at++) {
        c = substr(text, at, 1)
        if (c == "\\") {
            at++; c = substr(text, at, 1)
            if (c == "n") c = "\n"; else if (c == "t") c = "\t"; else if (c == "r") c = "\r"
            else if (c == "b") c = "\b"; else if (c == "f") c = "\f"
            else if (c == "u") { c = "?"; at += 4 }
        }
        out = out c
    }
    return out
}
function quote(text) {
    gsub(/\\/, "\\\\", text); gsub(/"/, "\\\"", text); gsub(/\n/, "\\n", text); gsub(/\t/, "\\t", text); gsub(/\r/, "\\r", text)
    return "\"" text "\""
}
function skip() { if (match(J, /^[ \t\r\n]+/)) J = substr(J, RLENGTH + 1) }
function json(    node, key, c) {
    skip()
    c = substr(J, 1, 1)
    if (c == "{") {
        node = new("object", ""); J = substr(J, 2); skip()
        if (substr(J, 1, 1) == "}") { J = substr(J, 2); return node }
        while (1) {
            skip()
            if (!match(J, /^"([^"\\]|\\.)*"/)) fail("parse error: Object keys must be strings", 2)
            key = unquote(substr(J, 1, RLENGTH)); J = substr(J, RLENGTH + 1); skip()
            if (substr(J, 1, 1) != ":") fail("parse error: Objects must consist of key:value pairs", 2)
            J = substr(J, 2); add_member(node, key, json()); skip()
            c = substr(J, 1, 1); J = substr(J, 2)
            if (c == "}") return node
            if (c != ",") fail("parse error: Expected separator between values", 2)
        }
    }
    if (c == "[") {
        node = new("array", ""); J = substr(J, 2); skip()
        if (substr(J, 1, 1) == "]") { J = substr(J, 2); return node }
        while (1) {
            add_member(node, "", json()); skip()
            c = substr(J, 1, 1); J = substr(J, 2)
            if (c == "]") return node
            if (c != ",") fail("parse error: Expected separator between values", 2)
        }
    }
    if (match(J, /^"([^"\\]|\\.)*"/)) { node = new("string", unquote(substr(J, 1, RLENGTH))); J = substr(J, RLENGTH + 1); return node }
    if (match(J, /^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?/)) { node = new("number", substr(J, 1, RLENGTH)); J = substr(J, RLENGTH + 1); return node }
    if (match(J, /^(true|false)/)) { node = new("boolean", substr(J, 1, RLENGTH)); J = substr(J, RLENGTH + 1); return node }
    if (match(J, /^null/)) { J = substr(J, 5); return new("null", "null") }
    fail("parse error: Invalid literal", 2)
}
function show(node, pad, compact,    i, out, inner) {
    if (T[node] == "string") return quote(V[node])
    if (T[node] != "object" && T[node] != "array") return V[node]
    if (N[node] == 0) return T[node] == "object" ? "{}" : "[]"
    inner = pad "  "; out = T[node] == "object" ? "{" : "["
    for (i = 1; i <= N[node]; i++) {
        out = out (i > 1 ? "," : "") (compact ? "" : "\n" inner)
        if (T[node] == "object") out = out quote(K[node, i]) (compact ? ":" : ": ")
        out = out show(M[node, i], inner, compact)
    }
    return out (compact ? "" : "\n" pad) (T[node] == "object" ? "}" : "]")
}
function text_of(node) { return T[node] == "string" ? V[node] : show(node, "", 1) }
function truth(node) { return !(T[node] == "null" || V[node] == "false" && T[node] == "boolean") }
function rank(node) { return T[node] == "null" ? 0 : T[node] == "boolean" ? (V[node] == "true" ? 2 : 1) : T[node] == "number" ? 3 : T[node] == "string" ? 4 : T[node] == "array" ? 5 : 6 }
function compare(a, b) {
    if (rank(a) != rank(b)) return rank(a) < rank(b) ? -1 : 1
    if (T[a] == "number") return V[a] + 0 < V[b] + 0 ? -1 : V[a] + 0 > V[b] + 0
    a = show(a, "", 1); b = show(b, "", 1)
    return (a "") < (b "") ? -1 : (a "") > (b "")
}
function get(node, key,    i) {
    if (T[node] == "null") return null_node
    if (T[node] == "array") {
        i = key + 0; if (i < 0) i += N[node]
        return (node, i + 1) in M && i < N[node] && i >= 0 ? M[node, i + 1] : null_node
    }
    if (T[node] != "object") fail("Cannot index " T[node] " with \"" key "\"", 5)
    for (i = 1; i <= N[node]; i++) if (K[node, i] == key) return M[node, i]
    return null_node
}
function clone(node,    copy, i) {
    copy = new(T[node], V[node])
    for (i = 1; i <= N[node]; i++) add_member(copy, K[node, i], M[node, i])
    return copy
}
function number(value) { return new("number", value == int(value) ? sprintf("%d", value) : sprintf("%.10g", value)) }
function boolean(value) { return new("boolean", value ? "true" : "false") }

# The filter. E: what it is, A, B, C: its parts
function expr(what, a, b, c) { exprs++; E[exprs] = what; A[exprs] = a; B[exprs] = b; C[exprs] = c; return exprs }
function fskip() { while (match(F, /^[ \t\r\n]+/) || match(F, /^#[^\n]*/)) F = substr(F, RLENGTH + 1) }
function peek(text) { fskip(); return substr(F, 1, length(text)) == text }
function take(text) { if (!peek(text)) return 0; F = substr(F, length(text) + 1); return 1 }
function need(text) { if (!take(text)) fail("syntax error, unexpected '" substr(F, 1, 10) "' (Unix shell quoting issues?)", 3) }
function word(text) { fskip(); if (match(F, /^[A-Za-z_][A-Za-z_0-9]*/) && substr(F, 1, RLENGTH) == text) { F = substr(F, RLENGTH + 1); return 1 } return 0 }
function p_pipe(    left, name) {
    left = p_comma()
    if (word("as")) {
        need("$"); match(F, /^[A-Za-z_0-9]+/); name = substr(F, 1, RLENGTH); F = substr(F, RLENGTH + 1); need("|")
        return expr("as", left, name, p_pipe())
    }
    fskip()
    if (substr(F, 1, 1) == "|" && substr(F, 2, 1) != "=") { F = substr(F, 2); return expr("pipe", left, p_pipe()) }
    return left
}
function p_comma(    left) {
    left = p_assign()
    while (take(",")) left = expr("comma", left, p_assign())
    return left
}
function p_assign(    left) {
    left = p_alt()
    if (take("|=")) return expr("update", left, p_alt())
    if (take("+=")) return expr("plusset", left, p_alt())
    fskip()
    if (substr(F, 1, 1) == "=" && substr(F, 2, 1) != "=") { F = substr(F, 2); return expr("set", left, p_alt()) }
    return left
}
function p_alt(    left) { left = p_or(); if (take("//")) return expr("alt", left, p_alt()); return left }
function p_or(    left) { left = p_and(); while (word("or")) left = expr("or", left, p_and()); return left }
function p_and(    left) { left = p_compare(); while (word("and")) left = expr("and", left, p_compare()); return left }
function p_compare(    left, i, ops, count) {
    left = p_sum(); count = split("== != <= >= < >", ops, " ")
    for (i = 1; i <= count; i++) if (take(ops[i])) return expr("compare", left, p_sum(), ops[i])
    return left
}
function p_sum(    left, op) {
    left = p_product()
    while (1) {
        fskip(); op = substr(F, 1, 1)
        if ((op != "+" && op != "-") || substr(F, 2, 1) == "=") return left
        F = substr(F, 2); left = expr("math", left, p_product(), op)
    }
}
function p_product(    left, op) {
    left = p_postfix()
    while (1) {
        fskip(); op = substr(F, 1, 1)
        if ((op != "*" && op != "/" && op != "%") || substr(F, 2, 1) == "/") return left
        F = substr(F, 2); left = expr("math", left, p_postfix(), op)
    }
}
function p_string(    parts, c, text, depth, rest, inner, save) {
    # "..." with \( ... ) inside
    F = substr(F, 2); parts = 0; text = ""
    while (F != "") {
        c = substr(F, 1, 1)
        if (c == "\"") { F = substr(F, 2); c = expr("value", new("string", text)); return parts ? expr("join", parts, c) : c }
        if (c == "\\" && substr(F, 2, 1) == "(") {
            F = substr(F, 3); c = expr("value", new("string", text)); parts = parts ? expr("join", parts, c) : c
            inner = p_pipe(); need(")"); parts = expr("join", parts, inner); text = ""
        } else if (c == "\\") { text = text unquote("\"" substr(F, 1, 2) "\""); F = substr(F, 3) }
        else { text = text c; F = substr(F, 2) }
    }
    fail("syntax error, unterminated string", 3)
}
function p_postfix(    left, key, from, to) {
    left = p_primary()
    while (1) {
        if (substr(F, 1, 1) == "?") { F = substr(F, 2); left = expr("try", left) }
        else if (match(F, /^\.[A-Za-z_][A-Za-z_0-9]*/)) { left = expr("get", left, expr("value", new("string", substr(F, 2, RLENGTH - 1)))); F = substr(F, RLENGTH + 1) }
        else if (substr(F, 1, 2) == ".\"") { F = substr(F, 2); left = expr("get", left, p_string()) }
        else if (match(F, /^\.?\[/)) {
            F = substr(F, RLENGTH + 1)
            if (take("]")) left = expr("each", left)
            else if (take(":")) { to = p_pipe(); need("]"); left = expr("slice", left, 0, to) }
            else {
                key = p_pipe()
                if (take(":")) { to = peek("]") ? 0 : p_pipe(); need("]"); left = expr("slice", left, key, to) }
                else { need("]"); left = expr("get", left, key) }
            }
        } else return left
    }
}
function p_primary(    c, name, node, key, value, count, first) {
    fskip(); c = substr(F, 1, 1)
    if (c == "(") { F = substr(F, 2); node = p_pipe(); need(")"); return node }
    if (c == "-") { F = substr(F, 2); return expr("math", expr("value", new("number", 0)), p_postfix(), "-") }
    if (c == "\"") return p_string()
    if (c == "$") { F = substr(F, 2); match(F, /^[A-Za-z_][A-Za-z_0-9]*/); name = substr(F, 1, RLENGTH); F = substr(F, RLENGTH + 1); return expr("variable", name) }
    if (c == "@") { match(F, /^@[a-z0-9]+/); name = substr(F, 1, RLENGTH); F = substr(F, RLENGTH + 1); return expr("call", name, 0, 0) }
    if (match(F, /^[0-9]+(\.[0-9]+)?/)) { node = new("number", substr(F, 1, RLENGTH)); F = substr(F, RLENGTH + 1); return expr("value", node) }
    if (c == "[") { F = substr(F, 2); if (take("]")) return expr("value", new("array", "")); node = p_pipe(); need("]"); return expr("array", node) }
    if (c == "{") {
        F = substr(F, 2); first = expr("value", new("object", ""))
        while (!take("}")) {
            fskip()
            if (substr(F, 1, 1) == "\"") key = p_string()
            else if (substr(F, 1, 1) == "(") { F = substr(F, 2); key = p_pipe(); need(")") }
            else if (substr(F, 1, 1) == "$") { match(F, /^\$[A-Za-z_][A-Za-z_0-9]*/); name = substr(F, 2, RLENGTH - 1); F = substr(F, RLENGTH + 1); key = expr("value", new("string", name)); value = expr("variable", name); first = expr("field", first, key, value); take(","); continue }
            else if (match(F, /^[A-Za-z_][A-Za-z_0-9]*/)) { key = expr("value", new("string", substr(F, 1, RLENGTH))); F = substr(F, RLENGTH + 1) }
            else fail("syntax error in object", 3)
            if (take(":")) value = p_alt(); else value = expr("get", expr("identity"), key)
            first = expr("field", first, key, value)
            if (!take(",") && !peek("}")) fail("syntax error in object", 3)
        }
        return first
    }
    if (c == ".") {
        if (substr(F, 1, 2) == "..") { F = substr(F, 3); return expr("recurse") }
        if (match(F, /^\.[A-Za-z_"]/)) return expr("identity")
        F = substr(F, 2); return expr("identity")
    }
    if (match(F, /^[A-Za-z_][A-Za-z_0-9]*/)) {
        name = substr(F, 1, RLENGTH); F = substr(F, RLENGTH + 1)
        if (name == "true" || name == "false") return expr("value", new("boolean", name))
        if (name == "null") return expr("value", null_node)
        if (name == "if") {
            key = p_pipe(); if (!word("then")) fail("syntax error, if without then", 3)
            value = p_pipe()
            if (word("elif")) { F = "if " F; return expr("if", key, value, p_primary()) }
            if (word("else")) node = p_pipe(); else node = expr("identity")
            if (!word("end")) fail("syntax error, if without end", 3)
            return expr("if", key, value, node)
        }
        key = value = 0
        if (substr(F, 1, 1) == "(") { F = substr(F, 2); key = p_pipe(); if (take(";")) value = p_pipe(); need(")") }
        return expr("call", name, key, value)
    }
    fail("syntax error, unexpected '" substr(F, 1, 10) "' (Unix shell quoting issues?)", 3)
}

# Paths on the left of an assignment: returns a copy of the node with what is there replaced
function assign(path, node, how, value, input,    copy, key, i, results, list, count) {
    if (E[path] == "identity") {
        if (how == "delete") return 0
        if (how == "update") { split(eval(value, node), list, " "); return list[1] + 0 }
        if (how == "plusset") { split(eval(value, input), list, " "); return plus(node, list[1] + 0, "+") }
        split(eval(value, input), list, " "); return list[1] + 0
    }
    if (E[path] == "pipe" || E[path] == "comma") fail("Invalid path expression", 5)
    if (E[path] == "call" && A[path] == "select") {
        split(eval(B[path], node), list, " ")
        if (!truth(list[1] + 0)) return node
        path = expr("identity"); return assign(path, node, how, value, input)
    }
    if (E[path] != "get" && E[path] != "each") fail("Invalid path expression", 5)
    return assign_below(A[path], node, path, how, value, input)
}
# Descends to the parent first: parent(path) is changed by a function of its member
function assign_below(parent, node, path, how, value, input,    copy, i, list, key, member, keep, step) {
    if (E[parent] == "identity") {
        copy = T[node] == "null" ? new("object", "") : clone(node)
        if (E[path] == "each") {
            for (i = 1; i <= N[copy]; i++) M[copy, i] = rest_of(M[copy, i], how, value, input)
            return copy
        }
        split(eval(B[path], input), list, " "); key = text_of(list[1] + 0)
        if (T[copy] == "array") key = key + 0
        member = get(node, key)
        member = rest_of(member, how, value, input)
        if (member == 0) {
            keep = new(T[copy], "")
            for (i = 1; i <= N[copy]; i++) if (T[copy] == "array" ? i - 1 != key : K[copy, i] != key) add_member(keep, K[copy, i], M[copy, i])
            return keep
        }
        if (T[copy] == "array" && key < N[copy]) M[copy, key + 1] = member; else add_member(copy, key, member)
        return copy
    }
    # Push this step on the stack and go on with the parent
    depth++; Step[depth] = path
    copy = assign_below(A[parent], node, parent, how, value, input)
    return copy
}
function rest_of(member, how, value, input,    step, result) {
    if (depth > 0) {
        step = Step[depth]; depth--
        result = assign_below(identity, member, step, how, value, input)
        depth++; Step[depth] = step
        return result
    }
    return assign(identity, member, how, value, input)
}
function plus(a, b, op,    copy, i) {
    if (op == "+") {
        if (T[a] == "null") return b
        if (T[b] == "null") return a
        if (T[a] == "string" && T[b] == "string") return new("string", V[a] V[b])
        if (T[a] == T[b] && (T[a] == "array" || T[a] == "object")) { copy = clone(a); for (i = 1; i <= N[b]; i++) add_member(copy, K[b, i], M[b, i]); return copy }
    }
    if (op == "*" && T[a] == "object" && T[b] == "object") return plus(a, b, "+")
    if (op == "-" && T[a] == "array") { copy = new("array", ""); for (i = 1; i <= N[a]; i++) if (!contains_member(b, M[a, i])) add_member(copy, "", M[a, i]); return copy }
    if (T[a] != "number" || T[b] != "number") fail(T[a] " and " T[b] " cannot be combined", 5)
    if (op == "+") return number(V[a] + V[b])
    if (op == "-") return number(V[a] - V[b])
    if (op == "*") return number(V[a] * V[b])
    if (V[b] + 0 == 0) fail("division by zero", 5)
    if (op == "/") return number(V[a] / V[b])
    return number(int(V[a]) % int(V[b]))
}
function contains_member(list, node,    i) { for (i = 1; i <= N[list]; i++) if (compare(M[list, i], node) == 0) return 1; return 0 }
function sorted(node, by,    copy, i, j, x, key, keys, list) {
    copy = clone(node)
    for (i = 1; i <= N[copy]; i++) { if (by) { split(eval(by, M[copy, i]), list, " "); keys[i] = list[1] + 0 } else keys[i] = M[copy, i] }
    for (i = 2; i <= N[copy]; i++) {
        x = M[copy, i]; key = keys[i]
        for (j = i - 1; j >= 1 && compare(keys[j], key) > 0; j--) { M[copy, j + 1] = M[copy, j]; keys[j + 1] = keys[j] }
        M[copy, j + 1] = x; keys[j + 1] = key
    }
    return copy
}
function keys_of(node,    list, i) {
    list = new("array", "")
    for (i = 1; i <= N[node]; i++) add_member(list, "", T[node] == "array" ? number(i - 1) : new("string", K[node, i]))
    return list
}
function descend(node,    i, out) { out = " " node; for (i = 1; i <= N[node]; i++) out = out descend(M[node, i]); return out }
function eval(e, input,    what, out, list, more, count, i, j, node, total, a, b, sign) {
    what = E[e]; out = ""
    if (what == "identity") return " " input
    if (what == "value") return " " A[e]
    if (what == "variable") { if (A[e] == "ENV") fail("$ENV is not here", 5); if (!(A[e] in variable)) fail("$" A[e] " is not defined at <top-level>, line 1", 3); return " " variable[A[e]] }
    if (what == "recurse") return descend(input)
    if (what == "comma") { out = eval(A[e], input); return out eval(B[e], input) }
    if (what == "call") return call(A[e], B[e], C[e], input)
    if (what == "array") { node = new("array", ""); count = split(eval(A[e], input), list, " "); for (i = 1; i <= count; i++) add_member(node, "", list[i] + 0); return " " node }
    if (what == "set" || what == "update" || what == "plusset") { depth = 0; return " " assign(A[e], input, what, B[e], input) }
    if (what == "try") { count = split(eval_quiet(A[e], input), list, " "); for (i = 1; i <= count; i++) out = out " " list[i]; return out }
    if (what == "alt") {
        count = split(eval(A[e], input), list, " ")
        for (i = 1; i <= count; i++) if (truth(list[i] + 0)) out = out " " list[i]
        return out == "" ? eval(B[e], input) : out
    }
    count = split(eval(A[e], input), list, " ")
    for (i = 1; i <= count; i++) {
        node = list[i] + 0
        if (what == "pipe") out = out eval(B[e], node)
        else if (what == "as") { variable[B[e]] = node; out = out eval(C[e], input) }
        else if (what == "each") {
            if (T[node] != "object" && T[node] != "array") { if (quiet) continue; fail("Cannot iterate over " T[node], 5) }
            for (j = 1; j <= N[node]; j++) out = out " " M[node, j]
        }
        else if (what == "if") { out = out eval(truth(node) ? B[e] : C[e], input) }
        else if (what == "and") { if (!truth(node)) out = out " " boolean(0); else { split(eval(B[e], input), more, " "); out = out " " boolean(truth(more[1] + 0)) } }
        else if (what == "or") { if (truth(node)) out = out " " boolean(1); else { split(eval(B[e], input), more, " "); out = out " " boolean(truth(more[1] + 0)) } }
        else if (what == "slice") {
            a = 0; b = T[node] == "string" ? length(V[node]) : N[node]; total = b
            if (B[e]) { split(eval(B[e], input), more, " "); a = V[more[1] + 0] + 0 }
            if (C[e]) { split(eval(C[e], input), more, " "); b = V[more[1] + 0] + 0 }
            if (a < 0) a += total
            if (b < 0) b += total
            if (T[node] == "string") out = out " " new("string", substr(V[node], a + 1, b - a))
            else { sign = new("array", ""); for (j = a + 1; j <= b && j <= total; j++) add_member(sign, "", M[node, j]); out = out " " sign }
        }
        else {
            total = split(eval(what == "field" ? C[e] : B[e], input), more, " ")
            for (j = 1; j <= total; j++) {
                if (what == "get") { if (!quiet || T[node] ~ /^(null|object|array)$/) out = out " " get(node, text_of(more[j] + 0)) }
                else if (what == "join") out = out " " new("string", text_of(node) text_of(more[j] + 0))
                else if (what == "math") out = out " " plus(node, more[j] + 0, C[e])
                else if (what == "field") { a = clone(node); split(eval(B[e], input), b_list, " "); add_member(a, text_of(b_list[1] + 0), more[j] + 0); out = out " " a }
                else if (what == "compare") {
                    sign = compare(node, more[j] + 0); a = C[e]
                    out = out " " boolean(a == "==" ? sign == 0 : a == "!=" ? sign != 0 : a == "<" ? sign < 0 : a == ">" ? sign > 0 : a == "<=" ? sign <= 0 : sign >= 0)
                }
            }
        }
    }
    return out
}
function eval_quiet(e, input,    before, out) { before = quiet; quiet = 1; out = eval(e, input); quiet = before; return out }
function call(name, a, b, input,    out, list, count, i, node, text, other) {
    if (name == "empty") return ""
    if (name == "not") return " " boolean(!truth(input))
    if (name == "length") return " " number(T[input] == "string" ? length(V[input]) : T[input] == "null" ? 0 : T[input] == "number" ? V[input] : N[input])
    if (name == "keys") return " " sorted(keys_of(input), 0)
    if (name == "keys_unsorted") return " " keys_of(input)
    if (name == "values") return T[input] == "null" ? "" : " " input
    if (name == "type") return " " new("string", T[input])
    if (name == "tostring") return " " new("string", text_of(input))
    if (name == "tonumber") return " " number(V[input] + 0)
    if (name == "tojson" || name == "@json") return " " new("string", show(input, "", 1))
    if (name == "fromjson") { J = V[input]; return " " json() }
    if (name == "ascii_downcase") return " " new("string", tolower(V[input]))
    if (name == "ascii_upcase") return " " new("string", toupper(V[input]))
    if (name == "now") return " " new("number", 1709539200)
    if (name == "first" && !a) return " " get(input, 0)
    if (name == "last" && !a) return " " get(input, N[input] - 1)
    if (name == "first") { split(eval(a, input), list, " "); return " " list[1] }
    if (name == "add") { node = null_node; for (i = 1; i <= N[input]; i++) node = plus(node, M[input, i], "+"); return " " node }
    if (name == "sort") return " " sorted(input, 0)
    if (name == "sort_by") return " " sorted(input, a)
    if (name == "reverse") { node = new("array", ""); for (i = N[input]; i >= 1; i--) add_member(node, "", M[input, i]); return " " node }
    if (name == "min" || name == "max" || name == "min_by" || name == "max_by") { node = sorted(input, a); return " " get(node, name ~ /^min/ ? 0 : N[node] - 1) }
    if (name == "unique" || name == "unique_by") { other = sorted(input, a); node = new("array", ""); for (i = 1; i <= N[other]; i++) if (N[node] == 0 || compare(M[node, N[node]], M[other, i]) != 0) add_member(node, "", M[other, i]); return " " node }
    if (name == "any" || name == "all") {
        node = name == "all"
        for (i = 1; i <= N[input]; i++) { if (a) { split(eval(a, M[input, i]), list, " "); other = list[1] + 0 } else other = M[input, i]; if (truth(other) != node) return " " boolean(!node) }
        return " " boolean(node)
    }
    if (name == "to_entries") {
        node = new("array", "")
        for (i = 1; i <= N[input]; i++) { other = new("object", ""); add_member(other, "key", new("string", K[input, i])); add_member(other, "value", M[input, i]); add_member(node, "", other) }
        return " " node
    }
    if (name == "from_entries") { node = new("object", ""); for (i = 1; i <= N[input]; i++) add_member(node, text_of(get(M[input, i], "key")), get(M[input, i], "value")); return " " node }
    if (name == "@csv" || name == "@tsv" || name == "@sh") {
        text = ""
        for (i = 1; i <= N[input]; i++) text = text (i > 1 ? (name == "@csv" ? "," : name == "@tsv" ? "\t" : " ") : "") (name == "@csv" ? show(M[input, i], "", 1) : name == "@sh" ? "'" text_of(M[input, i]) "'" : text_of(M[input, i]))
        return " " new("string", name == "@sh" && T[input] == "string" ? "'" V[input] "'" : text)
    }
    if (name == "@text" || name == "@base64" || name == "@uri" || name == "@html") return " " new("string", text_of(input))
    if (name == "map") { node = new("array", ""); for (i = 1; i <= N[input]; i++) { count = split(eval(a, M[input, i]), list, " "); for (other = 1; other <= count; other++) add_member(node, "", list[other] + 0) } return " " node }
    if (name == "del") { depth = 0; if (E[a] == "comma") return call("del", B[a], 0, call("del", A[a], 0, input) + 0); return " " assign(a, input, "delete", 0, input) }
    if (name == "error") fail(text_of(input), 5)
    if (name == "env") fail("env is not here", 5)
    count = split(eval(a, input), list, " "); out = ""
    for (i = 1; i <= count; i++) {
        node = list[i] + 0
        if (name == "select") { if (truth(node)) out = out " " input }
        else if (name == "has") out = out " " boolean(T[input] == "array" ? V[node] < N[input] : index_of(input, V[node]))
        else if (name == "join") { text = ""; for (other = 1; other <= N[input]; other++) text = text (other > 1 ? V[node] : "") (T[M[input, other]] == "null" ? "" : text_of(M[input, other])); out = out " " new("string", text) }
        else if (name == "contains") out = out " " boolean(T[input] == "string" ? index(V[input], V[node]) > 0 : contains_all(input, node))
        else if (name == "test") out = out " " boolean(V[input] ~ V[node])
        else if (name == "startswith") out = out " " boolean(index(V[input], V[node]) == 1)
        else if (name == "endswith") out = out " " boolean(length(V[input]) >= length(V[node]) && substr(V[input], length(V[input]) - length(V[node]) + 1) == V[node])
        else if (name == "split") { text = V[input]; other = new("array", ""); while ((b = index(text, V[node])) > 0) { add_member(other, "", new("string", substr(text, 1, b - 1))); text = substr(text, b + length(V[node])) } add_member(other, "", new("string", text)); out = out " " other }
        else if (name == "ltrimstr") out = out " " new("string", index(V[input], V[node]) == 1 ? substr(V[input], length(V[node]) + 1) : V[input])
        else if (name == "rtrimstr") out = out " " new("string", call("endswith", a, 0, input) && truth(call("endswith", a, 0, input) + 0) ? substr(V[input], 1, length(V[input]) - length(V[node])) : V[input])
        else if (name == "gsub" || name == "sub") { split(eval(b, input), more_list, " "); text = V[input]; if (name == "sub") sub(V[node], V[more_list[1] + 0], text); else gsub(V[node], V[more_list[1] + 0], text); out = out " " new("string", text) }
        else fail(name "/" (b ? 2 : 1) " is not defined at <top-level>, line 1", 3)
    }
    if (a == 0) fail(name "/0 is not defined at <top-level>, line 1", 3)
    return out
}
function index_of(node, key,    i) { for (i = 1; i <= N[node]; i++) if (K[node, i] == key) return i; return 0 }
function contains_all(a, b,    i) { for (i = 1; i <= N[b]; i++) if (!contains_member(a, M[b, i])) return 0; return 1 }
function print_all(results,    list, count, i, node) {
    count = split(results, list, " ")
    for (i = 1; i <= count; i++) {
        node = list[i] + 0; last_node = node; printed++
        printf "%s%s", (raw && T[node] == "string" ? V[node] : show(node, "", compact)), (raw == 2 ? "" : "\n")
    }
}
BEGIN {
    raw = ENVIRON["JQ_RAW"]; compact = ENVIRON["JQ_COMPACT"] != ""
    null_node = new("null", "null"); identity = expr("identity"); exit_code = 0
    for (n = 1; n + 2 < ARGC; n += 3) {
        if (ARGV[n + 1] == "s") variable[ARGV[n]] = new("string", ARGV[n + 2])
        else { J = ARGV[n + 2]; variable[ARGV[n]] = json() }
    }
    F = ENVIRON["JQ_FILTER"]
    program = p_pipe(); fskip()
    if (F != "") fail("syntax error, unexpected '" substr(F, 1, 10) "' (Unix shell quoting issues?)", 3)
    J = ENVIRON["JQ_INPUT"]
    if (ENVIRON["JQ_NULL"] != "") print_all(eval(program, null_node))
    else if (ENVIRON["JQ_RAWIN"] != "") {
        if (ENVIRON["JQ_SLURP"] != "") print_all(eval(program, new("string", J "\n")))
        else { count = split(J, all_lines, "\n"); for (n = 1; n <= count; n++) print_all(eval(program, new("string", all_lines[n]))) }
    } else if (ENVIRON["JQ_SLURP"] != "") {
        all = new("array", ""); skip()
        while (J != "") { add_member(all, "", json()); skip() }
        print_all(eval(program, all))
    } else {
        skip()
        while (J != "") { print_all(eval(program, json())); skip() }
    }
    if (ENVIRON["JQ_STATUS"] != "") exit_code = printed == 0 ? 4 : !truth(last_node)
    exit exit_code
}
