"""What kinds of subjects there are; every caller that treats them apart asks for the kind, not for a name."""

from __future__ import annotations

NEWBORN = "newborn"  # a scan of a person
PHANTOM = "phantom"  # drawn (datasets/phantom.py)
TEMPLATE = "template"  # an average of many at one age (datasets/templates.py)

PHANTOM_PREFIX = "phantom"  # phantom00, phantom01 ... in a cache
TEMPLATE_PREFIX = "age-"  # age-36


def kind_by_name(name: str) -> str:
    """The kind of a subject that a file names without saying its kind: caches and models of before version 0.2.

    Example:
        >>> kind_by_name("age-36"), kind_by_name("phantom00"), kind_by_name("sub-01")
        ('template', 'phantom', 'newborn')
    """
    prefixes = {PHANTOM_PREFIX: PHANTOM, TEMPLATE_PREFIX: TEMPLATE}
    return next((kind for prefix, kind in prefixes.items() if name.startswith(prefix)), NEWBORN)
