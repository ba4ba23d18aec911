"""Words that several readers of an answer look for, each group as alternatives of a regular expression.

A reader adds words of its own where it needs more of a kind; what it looks for beside all of these stays with it.
"""

from __future__ import annotations

AND_OR = "and|or|und|oder|et|ou|y|e|и|или"
IS_ABROAD = "ist|est|es|é|è"
"""German, French, Spanish, Portuguese, Italian."""
IS_OR_ARE_ABROAD = f"{IS_ABROAD}|sind|sont|son"
IS_WITHOUT_SPACES = "是|为|為|は|은|는|هو|هي|है"
"""Languages whose words no space, or no border that `\\b` knows, sets apart."""
HENCE = "so|thus|hence|therefore"
NOT = "not|never|nicht|pas|no es|не"
MAYBE = "may|might|could|perhaps|possibly|maybe"
DETERMINERS = "the|my|our|a|an|its|their"
