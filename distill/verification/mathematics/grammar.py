r"""Parses a whole piece of mathematics, plain or LaTeX, into a tree.

    \frac{1}{2}    ("/", 1, 2)              x = 5 cm     ("relation", ("=",), (x, ("quantity", 5, cm)))
    [0, 1)         ("sequence", "[", ")", (0, 1), ",")       3 \text{ or } 5    ("sequence", "", "", (3, 5), "or")

The whole text must be read, or `Unreadable` says why: a parser that takes only the part that it knows turns wrong
answers into right ones. Nothing is evaluated here, so untrusted text costs only time in proportion to its length.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from distill.verification.mathematics.atoms import SCALES, Atoms, Tree
from distill.verification.mathematics.tokens import Unreadable, tokens_of
from distill.verification.mathematics.units import DEGREE, PERCENT, Unit, read_unit
from toolkit.answers.number_notation import FUNCTIONS

_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "\\le": "<=", "\\leq": "<=", "\\ge": ">=", "\\geq": ">=",
    "\\leqslant": "<=", "\\geqslant": ">=", "\\lt": "<", "\\gt": ">", "\\ne": "!=", "\\neq": "!=", "!=": "!=",
    "\\approx": "~", "\\sim": "~", "\\in": "in", "\\equiv": "==", "==": "=", "\\to": "->", "\\rightarrow": "->",
    "\\Rightarrow": "=>", "\\implies": "=>", "=>": "=>", "->": "->",
}  # fmt: skip
_SETS = {"\\cup": "union", "\\cap": "intersection", "\\setminus": "without"}
_OR, _AND = frozenset(("or", "oder", "ou", "или")), frozenset(("and", "und", "et", "и"))
_OPENING_COMMANDS = frozenset((
    "{", "frac", "sqrt", "binom", "pi", "infty", "lfloor", "lceil", "begin", "emptyset", "varnothing", "overline",
    "mathbb", "sum", "int", "prod", "lim",
))  # fmt: skip


@lru_cache(maxsize=4_096)
def read_notation(text: str, *, commas: bool = True) -> Tree:
    """Read the whole text. `commas`: whether a comma may belong to a number ("1,234") instead of separating items.

    Raises `Unreadable`, or `NeedsLibrary` if only the algebra system's own parser understands the text.
    """
    reader = _Reader(tokens_of(text, commas=commas))
    if not reader.tokens:
        raise Unreadable("nothing")
    tree = reader.items()
    if reader.peek():
        raise Unreadable(f"an unexpected {reader.peek()!r}")
    return tree


class _Reader(Atoms):
    """A recursive descent parser with one method per level of the grammar."""

    def items(self) -> Tree:
        self.deeper()
        found, separators = [self.relation()], set()
        while separator := self.separator():
            separators.add(separator)
            if self.peek() not in ("", ")", "]", "}", "\\}"):
                found.append(self.relation())
        self.depth -= 1
        if len(found) == 1 and not separators:
            return found[0]
        return ("sequence", "", "", tuple(found), "or" if "or" in separators else ",")

    def separator(self) -> str:
        """Take `,`, `;`, `and`, `or` or a combination of them; return an empty text if there is none."""
        taken = ""
        while True:
            piece, word = self.peek(), self.token().word
            if piece in (",", ";") or (piece.startswith("\x02") and word in ("", ";")):
                taken = taken or ","
            elif word in _OR or piece in ("\\lor", "\\vee"):
                taken = "or"
            elif word in _AND or piece in ("\\land", "\\wedge", "&"):
                taken = taken or ","
            else:
                return taken
            self.at += 1

    def relation(self) -> Tree:
        sides, signs = [self.sum()], []
        while (sign := _RELATIONS.get(self.peek())) is not None:
            self.at += 1
            if sign in ("<", ">") and self.skip("="):
                sign += "="
            signs.append(sign)
            sides.append(self.sum())
        return ("relation", tuple(signs), tuple(sides)) if signs else sides[0]

    def sum(self) -> Tree:
        tree: Tree = ("plusminus", None, self.product()) if self.skip("\\pm", "\\mp") else self.product()
        while (sign := self.peek()) in ("+", "-", "\\pm", "\\mp", *_SETS):
            self.count_operation()
            self.at += 1
            right = self.product()
            if sign in ("+", "-"):
                tree = ("+", tree, right if sign == "+" else ("negative", right))
            else:
                tree = (_SETS.get(sign, "plusminus"), tree, right)
        return tree

    def product(self) -> Tree:
        tree = self.unary()
        while (extended := self.with_next_factor(tree)) is not None:
            self.count_operation()
            tree = extended
        return tree

    def with_next_factor(self, tree: Tree) -> Tree | None:
        """Extend the tree by what follows it directly: a factor, a divisor, a modulus, a unit; None if nothing does."""
        piece = self.peek()
        if piece in ("*", "/", ":"):
            self.at += 1
            return ("ratio" if piece == ":" else piece, tree, self.unary())
        if piece in ("\\pmod", "\\bmod", "\\mod", "mod") or (piece == "(" and self.peek(1) == "mod"):
            return ("modulo", tree, self.modulus())
        scale = SCALES.get(self.token().word)
        if scale and scale > 12 and self.token().word != "k" and _is_measurable(tree):
            self.at += 1
            return ("*", tree, ("number", Fraction(scale), None))
        if _is_measurable(tree) and (unit := self.unit()) is not None:
            return self.compound(tree, unit[0])
        if self.starts_factor():
            if self.kind() == "number" and self.peek(-1) != "!":
                raise Unreadable(f"{piece} right after another factor")
            return ("*", tree, self.power())
        return None

    def modulus(self) -> Tree:
        bracket = self.skip("(")
        self.take("\\pmod", "\\bmod", "\\mod", "mod")
        bracket = bracket or self.skip("(")
        braces = self.skip("{")
        modulus = self.sum()
        if braces:
            self.take("}")
        if bracket:
            self.take(")")
        return modulus

    def compound(self, tree: Tree, unit: Unit | None) -> Tree:
        """Read a quantity and a smaller one after it: ("compound", quantity in the smaller unit, units)."""
        if unit is None:
            return tree
        quantity: Tree = ("quantity", tree, unit)
        before, joined = self.at, self.token().word in ("and", ",") or self.peek() == ","
        if joined and self.kind(1) == "number":
            self.at += 1
        if self.kind() != "number":
            return quantity
        try:
            right = self.product()
        except Unreadable:
            right = ("text", "")
        if right[0] in ("quantity", "compound"):
            small = right[2] if right[0] == "quantity" else right[1][2]
            inner = right if right[0] == "quantity" else right[1]
            if small.dimensions == unit.dimensions and small.factor < unit.factor:
                times = ("number", unit.factor / small.factor, None)
                units = (unit, small) if right[0] == "quantity" else (unit, *right[2])
                return ("compound", ("quantity", ("+", ("*", tree, times), inner[1]), small), units)
        self.at = before
        if not joined:
            raise Unreadable("two adjacent numbers")
        return quantity

    def starts_factor(self) -> bool:
        kind, piece = self.kind(), self.peek()
        if kind in ("number", "word"):
            return self.token().word not in _OR | _AND | {"mod"}
        if kind == "command":
            name = piece[1:]
            return (
                name in _OPENING_COMMANDS
                or name in FUNCTIONS
                or (
                    len(name) > 1
                    and name.isalpha()
                    and piece not in _RELATIONS
                    and piece not in _SETS
                    and name
                    not in (
                        "pm",
                        "mp",
                        "end",
                        "rfloor",
                        "rceil",
                        "lor",
                        "land",
                        "vee",
                        "wedge",
                        "circ",
                        "degree",
                        "cdots",
                        "ldots",
                        "dots",
                    )
                )
            )
        return piece in ("(", "[", "{") or (piece == "|" and self.bars_closed())

    def bars_closed(self) -> bool:
        return sum(token.text == "|" for token in self.tokens[: self.at]) % 2 == 0

    def unary(self) -> Tree:
        if self.peek() in ("-", "+"):
            self.deeper()
            is_negative = self.take() == "-"
            inner = self.unary()
            self.depth -= 1
            if is_negative and inner[0] == "quantity":
                return ("quantity", ("negative", inner[1]), inner[2])
            return ("negative", inner) if is_negative else inner
        if self.skip("\\approx", "\\sim"):
            return ("about", self.unary())
        return self.power()

    def power(self) -> Tree:
        tree = self.postfix(self.atom())
        if self.peek() not in ("^", "**"):
            return tree
        if degrees := self.degrees():
            return ("quantity", tree, degrees)
        self.at += 1
        return self.postfix(("^", tree, self.exponent()))

    def degrees(self) -> Unit | None:
        r"""Take `^\circ`, `^{\circ}` or `^\circ C` if it comes next."""
        braced = self.peek(1) == "{"
        if self.peek(1 + braced) not in ("\\circ", "\\degree") or (braced and self.peek(3) != "}"):
            return None
        self.at += 4 if braced else 2
        scale = self.token().word
        if scale in ("c", "f"):
            self.at += 1
            return read_unit(f"°{scale.upper()}")
        return DEGREE

    def exponent(self) -> Tree:
        self.deeper()
        if self.peek() in ("-", "+"):
            tree: Tree = ("negative", self.exponent()) if self.take() == "-" else self.exponent()
        elif self.peek() == "{":
            tree = self.group()
        else:
            tree = self.power()
        self.depth -= 1
        return tree

    def postfix(self, tree: Tree) -> Tree:
        while (sign := self.peek()) in ("!", "!!", "%", "'", "\\degree"):
            self.count_operation()
            self.at += 1
            if sign in ("%", "\\degree"):
                tree = ("quantity", tree, PERCENT if sign == "%" else DEGREE)
            else:
                tree = ("call", {"!": "factorial", "!!": "double factorial", "'": "prime"}[sign], (tree,))
        return tree


def _is_measurable(tree: Tree) -> bool:
    """Return whether a unit may follow: the tree is a number or holds no letters."""
    if tree[0] in ("number", "digits"):
        return True
    if tree[0] == "constant":
        return bool(tree[1] == "pi")
    return tree[0] in ("/", "*", "+", "^", "negative", "call", "sequence") and all(
        not isinstance(part, tuple) or not part or not isinstance(part[0], str) or _is_measurable(part)
        for part in _parts(tree)
    )


def _parts(tree: Tree) -> tuple[Tree, ...]:
    if tree[0] == "call":
        return tuple(tree[2])
    if tree[0] == "sequence":
        return tuple(tree[3])
    return tuple(tree[1:])
