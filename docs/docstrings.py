"""Turn the library's docstrings, which are written in Markdown with formulas in dollars, into reStructuredText."""

import re

TOKEN = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$]+?)\$|``?(?P<code>[^`]+)``?", re.DOTALL)


def inline(text: str) -> str:
    """Turn a paragraph's code and formulas into literals and roles, and escape what reStructuredText would read."""
    parts, end = [], 0
    for match in [*TOKEN.finditer(text), None]:
        plain = text[end : match.start() if match else None]
        plain = plain.replace("\\", "\\\\")
        plain = re.sub(
            r"\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?!\w)|([*_|])", marks, plain
        )
        parts.append(plain)
        if match is None:
            break
        end = match.end()
        if match["display"]:
            indent = re.search(r"(?:^|\n)([ ]*)[^\n]*$", text[: match.start()])[1]
            formula = " ".join(match["display"].split())
            parts.append(f"\n\n{indent}.. math:: {formula}\n\n{indent}")
        elif match["inline"]:
            before = "\\ " if parts and re.search(r"[\w)]$", parts[-1]) else ""
            after = "\\ " if re.match(r"\w", text[end : end + 1]) else ""
            parts.append(f"{before}:math:`{' '.join(match['inline'].split())}`{after}")
        else:
            after = "\\ " if re.match(r"\w", text[end : end + 1]) else ""
            parts.append(f"``{' '.join(match['code'].split())}``{after}")
    return "".join(parts)


def marks(match: re.Match[str]) -> str:
    """Keep strong and emphasised words, and escape a single mark."""
    if match[1]:
        return f"**{match[1]}**"
    return f"*{match[2]}*" if match[2] else f"\\{match[3]}"


def table(lines: list[str]) -> list[str]:
    """Turn a Markdown table into a list-table."""
    indent = re.match(r" *", lines[0])[0]
    rows = [re.split(r"(?<!\\)\|(?![^$]*\$(?:[^$]*\$[^$]*\$)*[^$]*$)", line.strip().strip("|")) for line in lines]
    made = ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        for n, cell in enumerate(row):
            made.append(f"{indent}   {'* -' if n == 0 else '  -'} {inline(cell.strip())}")
    return [*made, ""]


def to_rst(text: str) -> str:
    """Turn a docstring into reStructuredText; sections such as "Args:" stay for napoleon."""
    blocks, current = [], []
    for line in [*text.split("\n"), None]:
        is_table = line is not None and line.lstrip().startswith("| ")
        if current and (line is None or is_table != current[0].lstrip().startswith("| ")):
            blocks += table(current) if current[0].lstrip().startswith("| ") else lists(inline("\n".join(current)))
            current = []
        if line is not None:
            current.append(line)
    return "\n".join(blocks)


def lists(text: str) -> list[str]:
    """Put the blank line before a list that reStructuredText asks for."""
    made = []
    for line in text.split("\n"):
        item = re.match(r"( *)(- |\d\. )", line)
        if item and made and made[-1].strip() and not re.match(rf"{item[1]}(- |\d\. |  )", made[-1]):
            made.append("")
        made.append(line)
    return made
