"""Tables on the host, and the stores of tasks that recipes make of them.

| module | content |
|---|---|
| `table` | `Table`, columns by name |
| `reading` | `read_table`: delimited text, JSON, ARFF, CoNLL, Parquet, Arrow and Hugging Face folders |
| `recipe`, `encoding`, `missing` | `Recipe`, the parts of columns; numbers and categories as features |
| `store`, `grouping` | `make_store`: stores of tasks |
| `sets`, `source`, `splitting` | `load_table`: data sets by name, and the splits of their tasks |
| `text_sets`, `molecule_sets`, `user_sets`, `segment_sets` | readers of each data set |
| `packing` | tables and features in the cache |
"""

from metajax.data.tables.encoding import Encoding, fit
from metajax.data.tables.packing import cached
from metajax.data.tables.reading import Layout, read_table
from metajax.data.tables.recipe import Recipe, classes_of
from metajax.data.tables.sets import load_table
from metajax.data.tables.source import TableSplits, split_table
from metajax.data.tables.store import Featurized, TableStore, make_store
from metajax.data.tables.table import Table, concatenate

__all__ = [
    "Encoding",
    "Featurized",
    "Layout",
    "Recipe",
    "Table",
    "TableSplits",
    "TableStore",
    "cached",
    "classes_of",
    "concatenate",
    "fit",
    "load_table",
    "make_store",
    "read_table",
    "split_table",
]
