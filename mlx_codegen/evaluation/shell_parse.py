"""Which utilities does a command line call, and with which flags? Read from its syntax tree, as the shell would.

    sudo find . -name '*.log' -exec rm -rf {} + | xargs ls -la        find {-name -exec}, rm {-r -f}, xargs {}, ls {-l -a}

The tree is tree-sitter-bash's. What bash's grammar does not know is in the tables below: commands that run other commands,
and tools whose flags are words (`-name` is not `-n -a -m -e`). A value that sticks to a short flag cannot be told from
more flags (`-uroot`); of tools that `SUBCOMMANDS` does not list, the first argument is no flag.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node, Parser


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


AS_OTHERS = _set("sudo doas env time exec builtin")
"""They say as whom or how a command runs; the utility is the command."""
RUNNERS = {
    "sudo": _set("-u -g -p -h -C -r -t -U -T -R -D --user --group --prompt --host --chdir"),
    "doas": _set("-u -C"),
    "env": _set("-u -C --unset --chdir"),
    "time": _set("-f -o --format --output"),
    "exec": _set("-a"),
    "builtin": _set(""),
    "nohup": _set(""),
    "setsid": _set(""),
    "nice": _set("-n --adjustment"),
    "ionice": _set("-c -n --class --classdata"),
    "stdbuf": _set("-i -o -e --input --output --error"),
    "timeout": _set("-k -s --kill-after --signal"),
    "watch": _set("-n -q --interval --equexit"),
    "xargs": _set("-I -L -n -P -d -a -s -E --max-args --max-procs --max-lines --delimiter --arg-file"),
    "parallel": _set("-j -I -a -n -N -L --jobs --arg-file --colsep --delay --timeout"),
}
"""Commands that run the command in their arguments, each with its options that take the next word as their value."""
SHELLS = _set("sh bash dash zsh ksh")
FIND_RUNS = _set("-exec -execdir -ok -okdir")
WORD_FLAGS = _set("find java javac ffmpeg ffprobe ffplay convert magick mogrify openssl xrandr xset terraform")
"""Their flags are words behind one dash."""
OLD_STYLE = _set("tar ps ar")
"""Their first argument is flags, even without a dash."""
SUBCOMMANDS = _set(
    """
    git gh glab hg svn docker docker-compose podman kubectl helm systemctl journalctl apt apt-get apt-cache apt-mark dnf yum
    zypper pacman apk brew snap flatpak pip pip3 uv poetry conda npm npx yarn pnpm cargo rustup go gem bundle aws az gcloud
    vagrant terraform ansible-galaxy ip nmcli openssl adb tmux screen zfs zpool btrfs cryptsetup virsh lxc loginctl timedatectl
    hostnamectl networkctl resolvectl service chkconfig ufw firewall-cmd nix dotnet composer php rails jj ollama gpgconf wpctl
    """
)
"""What these do is said by the first word behind them, which counts as a flag: `git push` is not `git pull`."""

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


@dataclass(frozen=True)
class Utility:
    """One called command."""

    name: str
    flags: frozenset[str]


@dataclass(frozen=True)
class _Word:
    """A word of a command without its quotes; `plain` if it begins outside of them."""

    text: str
    plain: bool = True


def why_unavailable() -> str | None:
    """Returns why nothing can be parsed here, or None."""
    missing = [name for name in ("tree_sitter", "tree_sitter_bash") if find_spec(name) is None]
    return f"{missing[0].replace('_', '-')} is not installed" if missing else None


def utilities_and_flags(command: str) -> list[Utility] | None:
    """Returns the utilities in the order in which they stand, each before those inside its substitutions.

    None if it does not parse. Short flags come one by one, long ones without their value, numbers (`-5`) as `-#`. A character
    that is not ASCII counts as a dot: the grammar's scanner looks it up in a table of 256 (`isalnum`) and reads beyond its
    end, which kills the process (tree-sitter-bash 0.25). To bash, too, it is a part of a word and never of a name.
    """
    root = _parser().parse(_NOT_ASCII.sub(".", command).encode()).root_node
    try:
        return None if root.has_error else list(_walk(root))
    except RecursionError:  # sudo sudo sudo ..., five hundred times
        return None


@cache
def _parser() -> "Parser":
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language()))


def _walk(node: "Node") -> Iterator[Utility]:
    name = node.child_by_field_name("name")
    if node.type == "command" and name is not None:
        yield from _called([_word(name.named_children[0]), *map(_word, node.children_by_field_name("argument"))])
    elif node.type == "test_command":
        operators = [_text(child) for child in _below(node) if child.type == "test_operator"]
        yield Utility("test", frozenset(operators))
    elif node.type in ("declaration_command", "unset_command"):
        words = [_word(child) for child in node.named_children if child.type == "word"]
        yield from _called([_Word(_text(node.children[0])), *words])
    for child in node.named_children:
        yield from _walk(child)


def _called(words: list[_Word]) -> Iterator[Utility]:
    """The utility that these words call, and those that it calls in turn."""
    if not words:
        return
    name, arguments = words[0].text.rpartition("/")[2] or words[0].text, words[1:]
    if name in RUNNERS:
        yield from _runner(name, arguments)
    elif name == "find":
        yield from _find(arguments)
    else:
        yield Utility(name, _flags(name, arguments))
        if name in SHELLS:
            yield from utilities_and_flags(_script_of(arguments)) or []


def _script_of(arguments: list[_Word]) -> str:
    """What stands behind a shell's -c (or -xc); empty where it runs a file."""
    for place, word in enumerate(arguments[:-1]):
        if word.text.startswith("-") and not word.text.startswith("--") and word.text.endswith("c"):
            return arguments[place + 1].text
    return ""


def _runner(name: str, arguments: list[_Word]) -> Iterator[Utility]:
    start = _own_arguments(name, arguments)
    own, inner = arguments[:start], arguments[start:]
    if not inner or name not in AS_OTHERS:
        yield Utility(name, _flags(name, own))
    if len(inner) == 1 and " " in inner[0].text:  # watch 'df -h | tail'
        yield from utilities_and_flags(inner[0].text) or []
    else:
        yield from _called(inner)


def _own_arguments(name: str, arguments: list[_Word]) -> int:
    """How many of the words belong to the runner itself: its options, their values, assignments, a timeout's duration."""
    place, durations = 0, 1 if name == "timeout" else 0
    while place < len(arguments):
        text = arguments[place].text
        if text == "--":
            return place + 1
        if text.startswith("-"):
            place += 2 if text in RUNNERS[name] else 1
        elif name in ("env", "sudo") and "=" in text:
            place += 1
        elif durations:
            place, durations = place + 1, 0
        else:
            break
    return place


def _find(arguments: list[_Word]) -> Iterator[Utility]:
    """find itself, then the commands behind each -exec up to `;` or `+`."""
    own: list[_Word] = []
    inner: list[list[_Word]] = []
    words = iter(arguments)
    for word in words:
        own.append(word)
        if word.text in FIND_RUNS:
            inner.append(list(takewhile(lambda each: each.text not in (";", "+"), words)))
    yield Utility("find", _flags("find", own))
    for command in inner:
        yield from _called(command)


def _flags(name: str, arguments: list[_Word]) -> frozenset[str]:
    flags: set[str] = set()
    if name in SUBCOMMANDS:
        flags.update([word.text for word in arguments if not word.text.startswith("-")][:1])
    for place, word in enumerate(arguments):
        text = word.text
        if text == "--":
            break
        if name in OLD_STYLE and place == 0 and text.isalpha():
            text = f"-{text}"
        if word.plain and len(text) > 1 and text.startswith("-"):
            flags.update(_flags_of_word(name, text))
    return frozenset(flags)


def _flags_of_word(name: str, text: str) -> list[str]:
    if text.startswith("--"):
        return [text.partition("=")[0]]
    if name in WORD_FLAGS:
        is_value = not text[1].isalpha() or (name == "find" and not text[1:].isalnum())  # -mtime -7, -perm -u+x
        return [] if is_value else [text.partition("=")[0]]
    letters = text[1:].lstrip("0123456789")
    number = ["-#"] if len(letters) < len(text) - 1 else []
    return number + [f"-{letter}" for letter in takewhile(str.isalpha, letters)] or [text]


def _word(node: "Node") -> _Word:
    return _Word(_unquoted(node), node.type not in ("raw_string", "string", "ansi_c_string"))


def _unquoted(node: "Node") -> str:
    """A word as the command gets it, except that expansions stay as they are written."""
    text = _text(node)
    if node.type == "raw_string":
        return text[1:-1]
    if node.type == "string":
        return re.sub(r'\\(["\\$`])', r"\1", text[1:-1])
    if node.type == "ansi_c_string":
        return text[2:-1]
    if node.type == "concatenation":
        return "".join(map(_unquoted, node.children))
    return re.sub(r"\\(.)", r"\1", text) if node.type == "word" else text


def _below(node: "Node") -> Iterator["Node"]:
    for child in node.children:
        yield child
        yield from _below(child)


def _text(node: "Node") -> str:
    return (node.text or b"").decode("utf-8", "replace")
