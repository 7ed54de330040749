"""Options of a table whose rows have classes."""

import dataclasses

from ..flags.columns import TABLE, TABLES, ColumnOptions
from ..flags.settings import option, redeclare

_OWN_TABLE, _ON_TABLES = {"dataset": (TABLE,)}, {"dataset": TABLES}


@dataclasses.dataclass(frozen=True)
class ClassTableOptions(ColumnOptions):
    """A table whose rows have classes."""

    features: str = redeclare(ColumnOptions, "features", "", basic=False)
    smiles: str = redeclare(ColumnOptions, "smiles", "", basic=False)
    label: str = option(
        "", "Column of the class, such as topic.", section="Data", only=_OWN_TABLE, basic=True
    )
    domain: str = option(
        "",
        "Column of the domain, such as a language or a shop: the classes of a task are of one domain, and "
        "domains are divided into those of training, validation and test.",
        section="Data",
        only=_OWN_TABLE,
    )
    train_domains: str = option(
        "",
        "Domains to train on, separated by commas, in place of --split.",
        section="Data",
        only=_ON_TABLES,
    )
    valid_domains: str = option(
        "",
        "Domains to validate on; by default a fifth of --train_domains.",
        section="Data",
        only=_ON_TABLES,
        needs="train_domains",
    )
    test_domains: str = option(
        "",
        "Domains to test on.",
        section="Data",
        only=_ON_TABLES,
        needs="train_domains",
    )
    unknown: str = option(
        "",
        "Value of --label whose rows are of no class: the test measures how well they are told from queries. "
        "clinc150_oos has such rows without this option.",
        section="Test",
        only=_OWN_TABLE,
        never={"protocol": ("sequence",)},
    )
    min_rows: int = option(
        1,
        "Fewest rows of a class of a table; classes with fewer are left out.",
        section="Data",
        least=1,
        only=_ON_TABLES,
    )
