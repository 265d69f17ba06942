"""A request in plain English becomes the start of a document like those the model was trained on."""

SHEBANG = "#!/bin/bash"


def prompt_text(request: str, *, command: bool = False, plain: bool = False) -> str:
    """The text that the model continues.

    `Create a backup script` and `#!/bin/bash\\n# Create a backup script` give the same: shebang, comment, newline.
    `command` leaves the shebang out (one-line answers). `plain` takes the text as it is. Text that begins with `#`
    is code already and stays; if it ends in a comment, its line is closed.
    """
    if plain:
        return request
    if request.lstrip().startswith("#"):
        last_line = request.rpartition("\n")[2]
        return request + "\n" if last_line.startswith("#") else request
    comment = "".join(f"# {line.strip()}\n" for line in request.strip().splitlines() if line.strip())
    return comment if command else f"{SHEBANG}\n{comment}"


def unescape_newlines(text: str) -> str:
    """`\\n` typed on a command line means a newline; `\\\\n` means a backslash and an n."""
    return text.replace("\\\\n", "\0").replace("\\n", "\n").replace("\0", "\\n")
