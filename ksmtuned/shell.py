"""The assignments in a shell script, found by reading it: nothing is executed or expanded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# Bash's words, as far as a configuration file uses them. Every loop is possessive (*+): text that
# does not fit fails at once instead of being tried in ever new ways.
_PIECES = r"""
    (?P<plain>    [^ \t\r\n'"\\$`;&|()<>]++ | \$(?![({\['\w@*\#?$!-]) )
  | (?P<escaped>  \\(?:.|\Z) )
  | '(?P<single>  [^']*+ )'
  | "(?P<double>  (?:[^"\\]|\\.)*+ )"
  | (?P<expanded> \$[\w@*\#?$!-]++ | \$\{[^}]*+\} | \$\[[^\]]*+\] | \$'(?:[^'\\]|\\.)*+'
                | `(?:[^`\\]|\\.)*+`
                | (?:\$|(?<=[^ \t\r\n;&|()<>])) \( (?:[^()]|\((?:[^()]|\([^()]*+\))*+\))*+ \) )
"""
_PIECE = re.compile(_PIECES, re.VERBOSE | re.DOTALL | re.ASCII)
# Python 3.11's re fails on groups that capture inside a possessive loop.
_UNNAMED_PIECES = re.sub(r"\?P<\w+>", "?:", _PIECES)
_TOKEN = re.compile(
    rf"""
    (?P<gap>      [ \t\r]++ | \\\n | \#[^\n]*+ )
  | (?P<here>     <<(?!<) )
  | (?P<redirect> <<< | [<>] )
  | (?P<end>      \n | ;;&? | ;& | && | \|[|&]? | ; | & | [()] )
  | (?P<word>     (?:{_UNNAMED_PIECES})+ )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=.*", re.DOTALL)
# Inside double quotes: what is escaped, or (captured) what a shell would expand.
_IN_QUOTES = re.compile(r"\\.|(`|\$[\w({\[@*#?$!-])", re.DOTALL | re.ASCII)
_CLOSERS = {
    "if": "fi",
    "while": "done",
    "until": "done",
    "for": "done",
    "select": "done",
    "case": "esac",
    "{": "}",
    "(": ")",
}
_FILLERS = frozenset({"then", "else", "elif", "do", "!", "time"})
_DECLARERS = frozenset({"export", "readonly", "declare", "typeset"})
_UNCERTAIN_BEFORE = frozenset({"&&", "||", "|", "|&"})
_UNCERTAIN_AFTER = frozenset({"|", "|&", "&"})  # it runs in a process of its own


@dataclass(frozen=True, slots=True)
class Assignment:
    """NAME=VALUE as the shell would do it, unconditionally."""

    line: int
    name: str
    value: str | None  # None: only a shell can tell (an expansion, an array, +=)
    text: str  # as it is in the file


@dataclass(frozen=True, slots=True)
class Leftover:
    """A statement that is more than an assignment."""

    line: int
    text: str
    reason: str


@dataclass(slots=True)
class _Statement:
    line: int
    before: str  # what separates it from the last one
    after: str = "\n"
    words: list[str] = field(default_factory=list)
    redirected: bool = False

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read_assignments(script: str) -> list[Assignment | Leftover]:
    """What the script would assign, and the statements that were not understood, in order."""
    found: list[Assignment | Leftover] = []
    blocks: list[str] = []  # the closers that are awaited, innermost last
    for statement in _statements(script.replace("\r\n", "\n").replace("\0", "")):
        if isinstance(statement, Leftover):
            return [*found, statement]
        if statement.before == "(":
            blocks.append(")")
        statement.words = _enter_and_leave(blocks, statement.words)
        if not blocks and statement.words[:1] in (["exit"], ["return"]):
            return [
                *found,
                Leftover(statement.line, statement.text, "a shell stops here; so did we"),
            ]
        found += _judged(statement, bool(blocks))
        if statement.after == ")" and blocks[-1:] == [")"]:
            blocks.pop()
    return found


def _statements(script: str) -> Iterator[_Statement | Leftover]:
    """The script cut at its separators; a Leftover is the end of what can be read."""
    position, line = 0, 1
    statement = _Statement(line, "\n")
    while position < len(script):
        token = _TOKEN.match(script, position)
        if token is None or token.lastgroup == "here":
            yield _unreadable(statement.text + script[position:], line, token is None)
            return
        text = token[0]
        if token["word"] is not None:
            statement.words.append(text)
        elif token["redirect"]:
            statement.redirected = True
        position, line = token.end(), line + text.count("\n")
        if text == "\n" and statement.before in _UNCERTAIN_BEFORE and not statement.words:
            statement.line = line  # the other half of && may be on the next line
        elif token["end"]:
            statement.after = text
            yield statement
            statement = _Statement(line, text)
        elif not statement.words:
            statement.line = line
    yield statement


def _unreadable(rest: str, line: int, is_open: bool) -> Leftover:
    what = "a quote or bracket is never closed" if is_open else "a here-document begins"
    return Leftover(line, rest.partition("\n")[0], f"{what}; nothing from here on was read")


def _enter_and_leave(blocks: list[str], words: list[str]) -> list[str]:
    """Note which blocks the reserved words in front open and close; return the other words."""
    rest = iter(enumerate(words))
    for position, word in rest:
        if blocks and word == blocks[-1]:
            blocks.pop()
        elif word in _CLOSERS:
            blocks.append(_CLOSERS[word])
        elif word == "function":
            next(rest, None)  # its name
        elif word not in _FILLERS and not word.endswith("()"):
            return words[position:]
    return []


def _judged(statement: _Statement, in_block: bool) -> list[Assignment | Leftover]:
    words = statement.words
    if not words:
        return []
    line, text = statement.line, statement.text
    declared = words[0] in _DECLARERS
    plain = [word for word in words[declared:] if not (declared and word.startswith("-"))]
    matches = [_ASSIGNMENT.fullmatch(word) for word in plain]
    understood = (m or (declared and w.isidentifier()) for m, w in zip(matches, plain, strict=True))
    if statement.redirected or not all(understood):
        return [Leftover(line, text, "a shell would run this; it was not run")]
    doubtful = statement.before in _UNCERTAIN_BEFORE or statement.after in _UNCERTAIN_AFTER
    if in_block or doubtful:
        return [Leftover(line, text, "a shell would do this in some cases only")]
    return [
        Assignment(line, match[1], None if match[2] else _value(match[0]), match[0])
        for match in matches
        if match
    ]


def _value(assignment: str) -> str | None:
    """What stands after the =, without quotes; None if only a shell can tell."""
    value = ""
    for piece in _PIECE.finditer(assignment):
        if piece["expanded"] is not None:
            return None
        if piece["double"] is not None:
            if any(match[1] for match in _IN_QUOTES.finditer(piece["double"])):
                return None
            value += re.sub(r'\\([$`"\\\n])', _escaped, piece["double"])
        elif piece["escaped"] is not None:
            value += (piece["escaped"][1:] or "\\").replace("\n", "")
        else:
            value += piece["plain"] or piece["single"] or ""
    return value.partition("=")[2]


def _escaped(match: re.Match[str]) -> str:
    return match[1].replace("\n", "")
