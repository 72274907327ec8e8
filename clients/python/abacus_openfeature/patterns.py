"""Patterns in RE2's syntax, searched in linear time.

Python's own `re` has another syntax, and can take exponential time. Here a pattern
becomes a nondeterministic automaton, and that one a deterministic automaton, of which
only the states are made that a text reaches.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

Test = Callable[[str], bool]
Ranges = list[tuple[str, str]]


class UnsupportedPattern(Exception):
    """The pattern has something that only the service can search."""


class TooCostly(Exception):
    """A text makes so many states that the search is left to the service."""


WORK = 500_000  # steps of one search, each in a state that no search had reached
KEPT = 20_000  # transitions of a pattern that are kept

DIGITS: Ranges = [("0", "9")]
SPACES: Ranges = [("\t", "\n"), ("\f", "\r"), (" ", " ")]
WORDS: Ranges = [("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z")]
ESCAPED_RANGES = {"d": DIGITS, "s": SPACES, "w": WORDS}
ESCAPED = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
POSIX: dict[str, Ranges] = {
    "alnum": [("0", "9"), ("A", "Z"), ("a", "z")],
    "alpha": [("A", "Z"), ("a", "z")],
    "ascii": [("\0", "\x7f")],
    "blank": [("\t", "\t"), (" ", " ")],
    "cntrl": [("\0", "\x1f"), ("\x7f", "\x7f")],
    "digit": DIGITS,
    "graph": [("!", "~")],
    "lower": [("a", "z")],
    "print": [(" ", "~")],
    "punct": [("!", "/"), (":", "@"), ("[", "`"), ("{", "~")],
    "space": [("\t", "\r"), (" ", " ")],
    "upper": [("A", "Z")],
    "word": WORDS,
    "xdigit": [("0", "9"), ("A", "F"), ("a", "f")],
}
CATEGORIES = {
    *("C", "Cc", "Cf", "Co", "Cs", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc"),
    *("Me", "Mn", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po"),
    *("Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs", "Any"),
}

# What is before or after a position; only this decides about `^`, `$` and `\b`.
EDGE, NEWLINE, WORD, OTHER = range(4)


def _kind(char: str) -> int:
    if char == "\n":
        return NEWLINE
    is_word = char.isascii() and (char.isalnum() or char == "_")
    return WORD if is_word else OTHER


ASSERTIONS: dict[str, Callable[[int, int], bool]] = {
    "A": lambda before, after: before == EDGE,
    "z": lambda before, after: after == EDGE,
    "^": lambda before, after: before in (EDGE, NEWLINE),
    "$": lambda before, after: after in (EDGE, NEWLINE),
    "b": lambda before, after: (before == WORD) != (after == WORD),
}
# RE2 finds `\B` inside a letter of several bytes too, so it is left to the service.


# ----------------------------------------------------------------------------
# Letters without case
# ----------------------------------------------------------------------------


def _folded(char: str) -> str:
    if char == "\u0131":  # without a dot, it is no `i`
        return char
    upper = char.upper()
    upper = upper if len(upper) == 1 else char
    lower = upper.lower()
    return lower if len(lower) == 1 else upper


@cache
def _spellings() -> dict[str, list[str]]:
    """Return the letters that are the same without case, for each one that has such."""
    same: dict[str, list[str]] = {}
    for code in range(0x1F000):
        char = chr(code)
        if char.lower() != char or char.upper() != char or char.title() != char:
            same.setdefault(_folded(char), []).append(char)
    return {char: chars for chars in same.values() if len(chars) > 1 for char in chars}


def _is_in(ranges: Ranges) -> Test:
    return lambda char: any(first <= char <= last for first, last in ranges)


def _without_case(test: Test) -> Test:
    same = _spellings()
    return lambda char: any(test(one) for one in same.get(char, (char,)))


def _not(test: Test) -> Test:
    return lambda char: not test(char)


def _any_of(tests: list[Test]) -> Test:
    return lambda char: any(test(char) for test in tests)


# ----------------------------------------------------------------------------
# The syntax
# ----------------------------------------------------------------------------


class Flags(NamedTuple):
    """What the letters in `(?ims)` switch on."""

    i: bool = False
    m: bool = False
    s: bool = False


# A node: ("test", test), ("assert", name), ("all", nodes), ("any", nodes), or
# ("repeat", node, least, most), where most is None without a bound.
Node = tuple[Any, ...]


class Parser:
    """Reads a pattern that RE2 has accepted."""

    def __init__(self, pattern: str) -> None:
        self.text, self.place = pattern, 0

    def parse(self) -> Node:
        """Return the tree of the whole pattern."""
        node, _ = self._alternatives(Flags())
        if self.place < len(self.text):
            raise UnsupportedPattern("There is a bracket too many.")
        return node

    def _next(self, text: str) -> bool:
        """Skip this text if it is next, and tell whether it was."""
        is_next = self.text.startswith(text, self.place)
        self.place += len(text) if is_next else 0
        return is_next

    def _take(self) -> str:
        if self.place >= len(self.text):
            raise UnsupportedPattern("The pattern ends too early.")
        self.place += 1
        return self.text[self.place - 1]

    def _until(self, end: str) -> str:
        place = self.text.find(end, self.place)
        if place < 0:
            raise UnsupportedPattern(f"There is no {end!r}.")
        taken, self.place = self.text[self.place : place], place + len(end)
        return taken

    def _alternatives(self, flags: Flags) -> tuple[Node, Flags]:
        branches: list[Node] = []
        sequence: list[Node] = []
        while self.place < len(self.text) and self.text[self.place] != ")":
            if self._next("|"):
                branches.append(("all", sequence))
                sequence = []
            elif self._next("(?") and not self._is_named():
                flags, node = self._flagged(flags)
                sequence += [self._repeated(node)] if node else []
            else:
                sequence += self._pieces(flags)
        return ("any", [*branches, ("all", sequence)]), flags

    def _is_named(self) -> bool:
        """Go back to the beginning of a group with a name, and tell if it is one."""
        named = self.text.startswith(("P<", "<"), self.place)
        self.place -= 2 if named else 0
        return named

    def _flagged(self, flags: Flags) -> tuple[Flags, Node | None]:
        """Read `(?i)`, which lasts until its group ends, or `(?i:...)`."""
        is_on, inner = True, flags
        while (letter := self._take()) not in ":)":
            if letter == "-":
                is_on = False
            elif letter in "ims":
                inner = inner._replace(**{letter: is_on})
            elif letter != "U":  # greedy or not, the same texts match
                raise UnsupportedPattern(f"There is no flag {letter!r}.")
        return (inner, None) if letter == ")" else (flags, self._group(inner))

    def _group(self, flags: Flags) -> Node:
        node, _ = self._alternatives(flags)
        if not self._next(")"):
            raise UnsupportedPattern("There is a bracket too few.")
        return node

    def _pieces(self, flags: Flags) -> list[Node]:
        if self._next("("):
            if self._next("?P<") or self._next("?<"):
                self._until(">")
            return [self._repeated(self._group(flags))]
        if self._next("\\Q"):
            end = self.text.find("\\E", self.place)
            quoted = self.text[self.place : end if end >= 0 else None]
            self.place += len(quoted) + (2 if end >= 0 else 0)
            nodes = [self._char(char, flags) for char in quoted]
            return [*nodes[:-1], self._repeated(nodes[-1])] if nodes else []
        return [self._repeated(self._atom(flags))]

    def _atom(self, flags: Flags) -> Node:
        char = self._take()
        if char == ".":
            return "test", (lambda one: True) if flags.s else (lambda one: one != "\n")
        if char == "^":
            return "assert", "^" if flags.m else "A"
        if char == "$":
            return "assert", "$" if flags.m else "z"
        if char == "[":
            return "test", self._class(flags)
        if char == "\\":
            if self.text[self.place : self.place + 1] in set("Azb"):
                return "assert", self._take()
            found = self._escaped()
            if not isinstance(found, str):
                return "test", _without_case(found) if flags.i else found
            char = found
        return self._char(char, flags)

    def _char(self, char: str, flags: Flags) -> Node:
        test = _is_in([(char, char)])
        return "test", _without_case(test) if flags.i else test

    def _escaped(self) -> str | Test:
        """Read what is after a backslash: a character, or the test of a class."""
        letter = self._take()
        if letter.lower() in ESCAPED_RANGES:
            test = _is_in(ESCAPED_RANGES[letter.lower()])
            return test if letter.islower() else _not(test)
        if letter in "pP":
            return self._category(letter == "P")
        if letter in ESCAPED:
            return ESCAPED[letter]
        if letter == "x":
            digits = (
                self._until("}") if self._next("{") else self._take() + self._take()
            )
            return chr(int(digits, 16))
        if letter in "01234567":
            digits = letter
            while len(digits) < 3 and self.text[self.place : self.place + 1] in set(
                "01234567"
            ):
                digits += self._take()
            return chr(int(digits, 8))
        if letter.isalnum():
            raise UnsupportedPattern(f"There is no \\{letter}.")
        return letter

    def _category(self, is_negated: bool) -> Test:
        name = self._until("}") if self._next("{") else self._take()
        if name.startswith("^"):
            name, is_negated = name[1:], not is_negated
        if name not in CATEGORIES:  # a script, which Python does not know
            raise UnsupportedPattern(f"There is no category {name!r}.")
        prefix = "" if name == "Any" else name

        def test(char: str) -> bool:
            return unicodedata.category(char).startswith(prefix)

        return _not(test) if is_negated else test

    def _class(self, flags: Flags) -> Test:
        is_negated = self._next("^")
        ranges: Ranges = []
        tests: list[Test] = [_is_in(ranges)]
        is_first = True
        while is_first or not self._next("]"):
            is_first = False
            if self._next("[:"):
                tests.append(self._posix())
                continue
            found = self._member()
            if not isinstance(found, str):
                tests.append(found)
                continue
            last: str | Test = found
            after = self.text[self.place : self.place + 2]
            if after[:1] == "-" and after[1:] not in ("]", ""):
                self._take()
                last = self._member()
            if not isinstance(last, str):
                raise UnsupportedPattern("A range ends with a class.")
            ranges.append((found, last))
        test = _any_of(tests)
        test = _without_case(test) if flags.i else test
        return _not(test) if is_negated else test

    def _member(self) -> str | Test:
        char = self._take()
        return self._escaped() if char == "\\" else char

    def _posix(self) -> Test:
        name = self._until(":]")
        test = _is_in(POSIX[name.removeprefix("^")])
        return _not(test) if name.startswith("^") else test

    def _repeated(self, node: Node) -> Node:
        for mark, least, most in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._next(mark):
                self._next("?")
                return self._repeated(("repeat", node, least, most))
        end = self.text.find("}", self.place)
        if self.text.startswith("{", self.place) and end > 0:
            low, comma, high = self.text[self.place + 1 : end].partition(",")
            digits = [one for one in (low, high) if one]
            if low and all(one.isascii() and one.isdigit() for one in digits):
                self.place = end + 1
                self._next("?")
                bound = int(high) if high else None if comma else int(low)
                return self._repeated(("repeat", node, int(low), bound))
        return node


# ----------------------------------------------------------------------------
# The automata
# ----------------------------------------------------------------------------


class Nondeterministic:
    """The states of a pattern: a test and what follows, or only what follows."""

    MATCH = 0
    MOST = 50_000

    def __init__(self, node: Node) -> None:
        self.tests: list[Test | None] = [None]
        self.assertions: list[str | None] = [None]
        self.follow: list[list[int]] = [[]]
        self.start = self._made(node, self.MATCH)

    def _state(
        self, follow: list[int], test: Test | None = None, assertion: str | None = None
    ) -> int:
        if len(self.follow) >= self.MOST:
            raise UnsupportedPattern("The pattern is too long.")
        self.tests.append(test)
        self.assertions.append(assertion)
        self.follow.append(follow)
        return len(self.follow) - 1

    def _made(self, node: Node, then: int) -> int:
        """Return the first state of a node after which *then* follows."""
        if node[0] == "test":
            return self._state([then], test=node[1])
        if node[0] == "assert":
            return self._state([then], assertion=node[1])
        if node[0] == "all":
            for part in reversed(node[1]):
                then = self._made(part, then)
            return then
        if node[0] == "any":
            return self._state([self._made(part, then) for part in node[1]])
        _, inner, least, most = node
        if most is None:
            loop = self._state([then])
            self.follow[loop].append(self._made(inner, loop))
            then = loop
        else:
            end = then
            for _ in range(most - least):
                then = self._state([end, self._made(inner, then)])
        for _ in range(least):
            then = self._made(inner, then)
        return then

    def closure(self, states: frozenset[int], before: int, after: int) -> set[int]:
        """Return the states that are reached without a character."""
        reached: set[int] = set()
        waiting = [*states, self.start]
        while waiting:
            state = waiting.pop()
            if state in reached:
                continue
            reached.add(state)
            assertion = self.assertions[state]
            if self.tests[state] is None and (
                assertion is None or ASSERTIONS[assertion](before, after)
            ):
                waiting += self.follow[state]
        return reached


class State:
    """A deterministic state, and the next one for each character that was met."""

    __slots__ = ("before", "next", "states")

    def __init__(self, states: frozenset[int], before: int) -> None:
        self.states, self.before = states, before
        self.next: dict[str, State | None] = {}  # None: the pattern is found


class Pattern:
    """A compiled pattern."""

    def __init__(self, pattern: str) -> None:
        self._automaton = Nondeterministic(Parser(pattern).parse())
        self._forget()

    def _forget(self) -> None:
        self._states: dict[tuple[frozenset[int], int], State] = {}
        self._first = self._known(frozenset(), EDGE)
        self._transitions = 0

    def _known(self, states: frozenset[int], before: int) -> State:
        return self._states.setdefault((states, before), State(states, before))

    def is_in(self, text: str) -> bool:
        """Tell whether the pattern is found somewhere; raise TooCostly if unknown."""
        state, work = self._first, 0
        for char in text:
            try:
                following = state.next[char]
            except KeyError:
                following, cost = self._step(state, char)
                work += cost
                if work > WORK:
                    raise TooCostly from None
            if following is None:
                return True
            state = following
        reached = self._automaton.closure(state.states, state.before, EDGE)
        return Nondeterministic.MATCH in reached

    def _step(self, state: State, char: str) -> tuple[State | None, int]:
        automaton, kind = self._automaton, _kind(char)
        reached = automaton.closure(state.states, state.before, kind)
        following: State | None = None
        if Nondeterministic.MATCH not in reached:
            states = frozenset(self._passed(reached, char))
            if self._transitions >= KEPT:
                self._forget()
            following = self._known(states, kind)
        self._transitions += 1
        state.next[char] = following
        return following, len(reached)

    def _passed(self, reached: set[int], char: str) -> Iterator[int]:
        for state in reached:
            test = self._automaton.tests[state]
            if test is not None and test(char):
                yield from self._automaton.follow[state]
