r"""Reads the smallest parts of mathematics and the arguments of LaTeX commands: `12`, `3\frac{1}{2}`, `\sqrt[3]{x}`,
`x_1`, matrices, units.

Leaves of the tree are ("number", Fraction, decimals or None), ("constant", name), ("symbol", name) and ("text", words).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any

from distill.verification.mathematics.tokens import Cursor, MathToken, NeedsLibrary, Unreadable
from distill.verification.mathematics.units import LETTERS, SINGLE, Unit, is_unit, read_unit
from toolkit.answers.number_notation import FUNCTIONS, number_in_words, read_numeral
from toolkit.answers.qualifiers import says_another

Tree = tuple[Any, ...]

_GREEK = frozenset((
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "hbar", "ell",
))  # fmt: skip
_CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity"}
_SYMBOLS = {"emptyset": "emptyset", "varnothing": "emptyset", "angle": "angle", "triangle": "triangle"}
_WORDS = frozenset(["by", "cm", "mm", "km", "kg", "mg", "ml", "hr", "hrs", "ft", "lb", "lbs", "pm", "mph", "kmh", "vs"])
_FACTORS = re.compile(r"[^\W\d_]|[^aeiouyAEIOUY\W\d_]{2,3}|[abcxyz]{2,3}|[a-dkmnpqt-z]i|[A-Z]{2,3}", re.ASCII)
"""Adjacent letters that may be factors; English words of two or three letters have other vowels."""
_LIBRARY = frozenset(
    ["sum", "int", "prod", "lim", "iint", "oint", "partial", "nabla", "vec", "hat", "bar", "overrightarrow"]
)
_ALTERNATIVES = frozenset(("or", "and", "und", "oder", "et", "ou", "или", "и"))
_NO_UNIT = re.compile(
    r"\b(?:mod|base|or|and|if|when|st|nd|rd|th|half|halves|thirds?|factorial)\b|\btimes\s+\S|^\s*(?:squared|cubed)\b",
    re.IGNORECASE,
)
"""Words after a number that change it."""
SCALES = {
    **dict.fromkeys(("dozen", "dozens"), 12), "hundred": 100, **dict.fromkeys(["thousand", "k", "tausend", "mille", "mil", "тыс", "тысяч", "тысячи", "тысяча"], 10**3),
    **dict.fromkeys(["万", "萬", "만"], 10**4), **dict.fromkeys(["लाख", "lakh"], 10**5),
    **dict.fromkeys(["million", "millions", "mn", "mln", "millionen", "millones", "milhões", "milioni", "млн", "миллион", "миллиона", "миллионов"], 10**6),
    **dict.fromkeys(["करोड़", "crore"], 10**7), **dict.fromkeys(["亿", "億", "억"], 10**8),
    **dict.fromkeys(["billion", "bn", "mrd", "milliarden", "млрд"], 10**9), "trillion": 10**12,
}  # fmt: skip
_MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "vmatrix", "smallmatrix", "array", "Bmatrix", "Vmatrix"])


def _is_factors(word: str) -> bool:
    """Return whether adjacent letters may stand for numbers that are multiplied."""
    return word.casefold() not in _WORDS and bool(_FACTORS.fullmatch(word))


class Atoms(Cursor, ABC):
    """Reads one part at a time; the grammar around it is `distill.verification.mathematics.grammar`."""

    @abstractmethod
    def items(self) -> Tree:
        """Read everything up to a closing bracket or the end."""

    @abstractmethod
    def sum(self) -> Tree:
        """Read terms up to a relation or a separator."""

    @abstractmethod
    def power(self) -> Tree:
        """Read one atom with its exponent and postfix signs."""

    def atom(self) -> Tree:
        self.deeper()
        tree = self.part()
        self.depth -= 1
        return tree

    def part(self) -> Tree:
        kind, piece = self.kind(), self.peek()
        if kind == "number":
            return self.number()
        if kind == "word":
            return self.word()
        if kind == "text":
            self.at += 1
            return self.styled(piece.strip("\x02\x03 "))
        if piece in ("(", "[", "{", "\\{"):
            return self.bracketed()
        if kind == "command":
            return self.command(self.take()[1:])
        if piece == "|":
            return self.bars()
        if piece in ("$", "€", "£", "₹", "¥") and self.kind(1) in ("number", "sign"):
            self.at += 1
            unit = read_unit(piece)
            sign = self.skip("-")
            amount = self.atom()
            assert unit, "the signs above are units"
            return ("quantity", ("negative", amount) if sign else amount, unit)
        raise Unreadable(f"an unexpected {piece!r}" if piece else "an incomplete expression")

    def bars(self) -> Tree:
        self.take("|")
        inner = self.sum()
        self.take("|")
        return ("call", "abs", (inner,))

    # Numbers

    def number(self) -> Tree:
        text = self.take()
        if self.peek() == "_":
            return self.of_base(text)
        numeral = read_numeral(text)
        if numeral is None:
            raise Unreadable(f"the number {text[:20]}")
        if re.fullmatch(r"0\d{3,}", text):
            raise Unreadable(f"{text}, a string of digits")
        if numeral.value.denominator == 1 and numeral.decimals is None and (part := self.proper_fraction()) is not None:
            return ("number", numeral.value + part, None)
        if (scale := SCALES.get(self.token().word)) and (self.token().word != "k" or self.peek(-2) in ("$", "€", "£")):
            self.at += 1
            self.skip(".")
            return ("number", numeral.value * scale, None)
        return ("number", numeral.value, numeral.decimals)

    def proper_fraction(self) -> Fraction | None:
        r"""Take the fraction of a mixed number, `3 1/2` or `3\frac{1}{2}`, if there is one."""
        pieces = [self.peek(i) for i in range(7)]
        if self.kind() == "number" and self.token().spaced and pieces[1] == "/" and self.kind(2) == "number":
            top, bottom, length = pieces[0], pieces[2], 3
        elif pieces[:2] == ["\\frac", "{"] and pieces[3:5] == ["}", "{"] and pieces[6] == "}":
            top, bottom, length = pieces[2], pieces[5], 7
        elif pieces[0] == "\\frac" and re.fullmatch(r"[1-9]{2}", pieces[1]):
            top, bottom, length = pieces[1][0], pieces[1][1], 2
        else:
            return None
        if not (top.isdigit() and bottom.isdigit()) or len(bottom) > 6 or not 0 < int(top) < int(bottom):
            return None
        self.at += length
        return Fraction(int(top), int(bottom))

    def of_base(self, digits: str) -> Tree:
        self.take("_")
        base = self.take() if self.kind() == "number" else self.group()
        if isinstance(base, str):
            base = ("number", Fraction(base), None) if base.isdigit() else ("text", base)
        if base[0] == "text" and (named := number_in_words(base[1])) is not None:
            base = ("number", named, None)
        if base[0] != "number" or base[1].denominator != 1 or not 2 <= base[1] <= 36 or not digits.isalnum():
            raise Unreadable("a subscript that is not a base")
        return ("digits", digits, int(base[1]))

    # Words and names

    def word(self) -> Tree:
        word = self.take()
        folded = word.casefold()
        if folded in FUNCTIONS:
            return self.call(folded)
        if folded in _CONSTANTS:
            return ("constant", _CONSTANTS[folded])
        if word in _GREEK:
            return self.subscripted(word)
        if not _is_factors(word) and not (len(word) == 2 and word[1] == "e" and self.peek() in ("^", "**")):
            raise Unreadable(f"the word {word[:40]!r}")
        if len(word) > 1:  # adjacent letters are factors, and an exponent belongs to the last
            self.at -= 1
            self.tokens[self.at : self.at + 1] = [MathToken("word", letter, False) for letter in word]
            self.at += 1
        return self.letter(word[0])

    def letter(self, letter: str) -> Tree:
        if letter in "fghFGP":
            mark = (
                "^-1"
                if [self.peek(i) for i in range(5)] == ["^", "{", "-", "1", "}"]
                else "'"
                if self.peek() == "'"
                else ""
            )
            behind = {"^-1": 5, "'": 1, "": 0}[mark]
            if self.peek(behind) == "(":
                self.at += behind
                return ("call", f"function {letter}{mark}", (self.bracketed(),))
        if [self.peek(i) for i in (0, 2, 3)] == ["(", ")", "="]:  # p(x) = …
            return ("call", f"function {letter}", (self.bracketed(),))
        if letter in "ie" and self.peek() != "_":
            return ("constant", letter)
        return self.subscripted(letter)

    def subscripted(self, name: str) -> Tree:
        if not self.skip("_"):
            return ("symbol", name)
        if not self.skip("{"):
            return ("symbol", f"{name}_{self.take()}")
        subscript = ""
        while self.peek() != "}":
            subscript += self.take()
        self.take("}")
        return ("symbol", f"{name}_{subscript}")

    def styled(self, words: str) -> Tree:
        """Read text within mathematics: a one-letter name, a number, else words."""
        if len(words) == 1 and words.isalpha():
            return self.letter(words)
        if words.casefold() in FUNCTIONS:
            return self.call(words.casefold())
        if numeral := read_numeral(words.removeprefix("-")):
            tree = ("number", numeral.value, numeral.decimals)
            return ("negative", tree) if words.startswith("-") else tree
        return ("text", words)

    # Brackets and commands

    def group(self) -> Tree:
        """Read a command's argument: a group in braces, else one sign."""
        if self.skip("{"):
            tree = self.items()
            self.take("}")
            return tree
        if self.kind() == "number":
            digits = self.peek()
            if digits.isdigit() and len(digits) > 1:  # \\frac12 takes one digit
                self.tokens[self.at] = MathToken("number", digits[1:], False)
                return ("number", Fraction(int(digits[0])), None)
            self.at += 1
            numeral = read_numeral(digits)
            if numeral is None:
                raise Unreadable(f"the number {digits[:20]}")
            return ("number", numeral.value, numeral.decimals)
        return self.atom()

    def bracketed(self) -> Tree:
        """Read one value in brackets, or a sequence: ("sequence", opening, closing, items, separator)."""
        opening, first = self.take().lstrip("\\"), self.at - 1
        escaped = self.tokens[first].text == "\\{"
        if self.peek() in (")", "]", "}", "\\}"):
            closing = self.take().lstrip("\\")
            return ("symbol", "emptyset") if opening + closing == "{}" else ("sequence", opening, closing, (), ",")
        tree = self.items()
        closings = {"(": (")", "]"), "[": ("]", ")"), "{": ("\\}",) if escaped else ("}",)}
        closing = self.take(*closings[opening]).lstrip("\\")
        if tree[0] == "sequence" and tree[1] == "":
            return ("sequence", opening, closing, *tree[3:])
        if tree[0] == "matrix" and not escaped:
            return tree
        stands_alone = first == 0 or self.tokens[first - 1].text in ("[", ",")
        if escaped or (opening + closing == "[]" and stands_alone and self.peek() in ("", "]", ",")):
            return ("sequence", opening, closing, (tree,), ",")
        if opening + closing not in ("()", "[]", "{}"):
            raise Unreadable(f"one value between {opening} and {closing}")
        return tree

    def command(self, name: str) -> Tree:
        match name:
            case "frac":
                return ("/", self.group(), self.group())
            case "sqrt":
                return self.root()
            case "binom" | "dbinom" | "tbinom":
                return ("call", "binomial", (self.group(), self.group()))
            case "lfloor" | "lceil":
                inner = self.items()
                self.take("\\rfloor" if name == "lfloor" else "\\rceil")
                return ("call", name[1:], (inner,))
            case "begin":
                return self.environment()
            case "overline":
                return ("call", "overline", (self.group(),))
            case "mathbb" | "mathcal":
                self.skip("{")
                tree = ("symbol", f"{name}_{self.take()}")
                self.skip("}")
                return tree
            case _ if name in FUNCTIONS:
                return self.call(name)
            case _ if name in _CONSTANTS:
                return ("constant", _CONSTANTS[name])
            case _ if name in _GREEK:
                return self.subscripted(name)
            case "angle" | "triangle" | "measuredangle" if self.kind() == "word":
                return ("symbol", f"{name} {self.take()}")
            case _ if name in _SYMBOLS:
                return ("symbol", _SYMBOLS[name])
            case _ if name in _LIBRARY:
                raise NeedsLibrary(f"\\{name}")
        raise Unreadable(f"\\{name}")

    def root(self) -> Tree:
        degree: Tree = ("number", Fraction(2), None)
        if self.skip("["):
            degree = self.sum()
            self.take("]")
        return ("call", "root", (self.group(), degree))

    def call(self, name: str) -> Tree:
        r"""Read a call such as `\sin^2 x`, `\log_2 8`, `sqrt(3)` or `\gcd(4, 6)`."""
        if name == "sqrt":
            return self.root()
        subscript = exponent = None
        if self.skip("_"):
            subscript = self.group()
        if self.skip("^", "**"):
            exponent = self.group() if self.peek() == "{" else self.exponent_sign()
        if name in ("max", "min", "gcd", "lcm") and self.peek() not in ("(", "\\{", "["):
            raise Unreadable(f"{name} of one value")
        inner = self.bracketed() if self.peek() in ("(", "\\{", "[") else self.argument()
        arguments = inner[3] if inner[0] == "sequence" else (inner,)
        if subscript is not None:
            arguments = (*arguments, ("subscript", subscript))
        if exponent == ("negative", ("number", Fraction(1), None)) and f"arc{name}" in FUNCTIONS:
            return ("call", f"arc{name}", tuple(arguments))
        tree: Tree = ("call", name, tuple(arguments))
        return tree if exponent is None else ("^", tree, exponent)

    def exponent_sign(self) -> Tree:
        if self.skip("-"):
            return ("negative", self.group())
        return self.group()

    def argument(self) -> Tree:
        """Read the argument of a function without brackets: adjacent factors, up to a sign."""
        tree = self.power()
        while self.kind() in ("number", "word", "command") and self.peek()[1:] in {*_GREEK, "pi", "sqrt", "frac"} | {
            ""
        }:
            tree = ("*", tree, self.power())
        return tree

    def environment(self) -> Tree:
        """Read a matrix: ("matrix", rows of trees)."""
        self.take("{")
        name = self.take()
        self.take("}")
        if name not in _MATRICES:
            raise NeedsLibrary(f"\\begin{{{name}}}")
        if name == "array" and self.skip("{"):
            while not self.skip("}"):
                self.take()
        rows: list[list[Tree]] = [[]]
        while self.peek() != "\\end":
            rows[-1].append(self.sum())
            if self.skip("\\\\"):
                rows.append([])
            elif not self.skip("&"):
                break
        self.take("\\end")
        for piece in ("{", name, "}"):
            self.take(piece)
        matrix: Tree = ("matrix", tuple(tuple(row) for row in rows if row))
        return ("call", "determinant", (matrix,)) if name == "vmatrix" else matrix

    # Units

    def unit(self) -> tuple[Unit | None] | None:
        """Take a unit after a number: return (unit,), (None,) if it measures nothing, or None if there is none."""
        start, pieces = self.at, []
        while True:
            kind, piece = self.kind(), self.peek()
            if kind == "text" and self.token().word not in _ALTERNATIVES and not self.is_styled_letter():
                pieces.append(piece.strip("\x02\x03"))
            elif (kind == "word" or piece in ("$", "€", "£", "¥", "₹")) and self.names_unit(after_unit=bool(pieces)):
                pieces.append(piece)
            elif pieces and piece == "/" and (self.kind(1) == "text" or is_unit(self.peek(1))):
                pieces.append("/")
            elif pieces and piece in ("^", "**") and (power := self.unit_power()):
                pieces.append(f"^{power[0]}")
                self.at += power[1]
            else:
                break
            self.at += 1
        if self.at == start:
            return None
        name = " ".join(pieces)
        if _NO_UNIT.search(name) or says_another("", f" {name.strip()} "):
            raise Unreadable(f"{name.strip()} after a number")
        return (read_unit(name),)

    def is_styled_letter(self) -> bool:
        r"""Return whether a factor such as `\mathrm{x}` comes next, and not a unit such as `\mathrm{m}`."""
        word = self.peek().strip("\x02\x03 ")
        return len(word) == 1 and word.isascii() and word.isalpha() and word not in LETTERS

    def unit_power(self) -> tuple[str, int] | None:
        """Return the power of a unit, and how many tokens it takes."""
        found = re.match(r"\{(-?[123])\}|(-?[123])", "".join(self.peek(i) for i in range(1, 5)))
        return (found[1] or found[2], len(found[0])) if found else None

    def names_unit(self, *, after_unit: bool) -> bool:
        word = self.peek()
        if len(word) == 1 and word.isalpha():
            return after_unit or (
                self.token().spaced
                and (word in SINGLE or (word in "NWVJK" and self.kind(1) == "end"))
                and (self.kind(1) in ("end", "sign", "text") or is_unit(self.peek(2)))  # 2 h 30 min
                and self.peek(1) != "("
            )
        if re.fullmatch(r"[A-Z]{3}", word) and self.token().spaced and word not in ("ABC", "DEF", "XYZ"):
            return True  # a currency, or a unit of one's own
        return is_unit(word) or word.casefold() in ("per", "square", "cubic", "sq", "squared", "cubed", "units", "unit")
