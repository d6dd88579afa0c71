"""Tables in files, CSV and Parquet: ids stay text, nothing is renamed or guessed, and a damaged table is one sentence."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagery2flow.run.errors import InputError, TableError, as_clause, shortened, shown
from imagery2flow.run.files import check_output_folder, existing_file, replacing

if TYPE_CHECKING:
    import pandas as pd

MISSING_NUMBERS = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A"]
TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")
LARGEST_UNPACKED_BYTES = 1 << 30  # below it, a gzipped table may unpack to any share of its size
MOST_UNPACKED_SHARE = 100  # tables of ids and numbers reach 5 to 40


def read_table(path: str | Path, what: str, text_columns: Iterable[str | int]) -> pd.DataFrame:
    """Reads a CSV or Parquet table; the columns of ids are read as text, so that leading zeros survive.

    Args:
        path: CSV, gzipped CSV or Parquet.
        what: What the table holds, for messages.
        text_columns: Names or positions of the columns of ids; a name that is not there is passed over.

    Raises:
        MissingInputError: There is no such file.
        InputError: The suffix is unknown, the file cannot be parsed, or a column is there twice.
    """
    import pandas as pd

    path = existing_file(path, what)
    if not path.name.endswith(TABLE_SUFFIXES):
        raise InputError(f"{what} {path} has an unknown suffix; name a file that ends in {', '.join(TABLE_SUFFIXES)}")
    try:
        refuse_bomb(path, what)
        refuse_repeated(read_header(path), f"{what} {path}")
        if path.name.endswith(".parquet"):
            table = pd.read_parquet(path)
            check_encoding(table)
            return with_text_ids(plain_columns(table), text_columns, f"{what} {path}")
        columns = pd.read_csv(path, nrows=0).columns
        ids = {columns[name] if isinstance(name, int) else name for name in text_columns if name != 0 or len(columns)}
        # "NA" is missing as a number, but an id may be NA: of ids only the empty cell is missing.
        missing = {column: [""] if column in ids else MISSING_NUMBERS for column in columns}
        return pd.read_csv(path, dtype=dict.fromkeys(ids, "str"), keep_default_na=False, na_values=missing, low_memory=False)
    except InputError:
        raise
    except Exception as error:  # damaged archives and Parquet files raise a dozen classes, depending on which byte is wrong
        raise InputError(
            f"{what} {path} cannot be parsed as a table ({shortened(as_clause(error))}); check that it is a CSV or Parquet file"
        ) from error


def check_encoding(table: pd.DataFrame) -> None:
    """Lets Arrow look at all text of a Parquet table, which it reads without looking: damaged text would stop whoever joins by it, much later."""
    import pandas as pd
    import pyarrow

    for values in (table.index, *(column for _, column in table.items())):
        if isinstance(values.dtype, pd.StringDtype):
            pyarrow.array(values, from_pandas=True).validate(full=True)


def with_text_ids(table: pd.DataFrame, text_columns: Iterable[str | int], where: str) -> pd.DataFrame:
    """The table with ids that came as its index as columns, and with those that came as categories as the text that they are.

    Ids that are numbers stay: who joins them says what became of their zeros.

    Raises:
        InputError: A column of ids holds neither text nor numbers.
    """
    import pandas as pd

    asked = list(text_columns)
    if set(asked) & set(table.index.names):
        table = table.reset_index()
    positions = [table.columns[place] for place in asked if isinstance(place, int) and place < len(table.columns)]
    for name in [name for name in asked if name in table.columns] or positions:
        ids = table[name].astype("object") if isinstance(table[name].dtype, pd.CategoricalDtype) else table[name]
        kind = pd.api.types.infer_dtype(ids, skipna=True)
        if kind not in ("string", "empty") and not pd.api.types.is_numeric_dtype(ids):
            raise InputError(f"{where} holds values of the kind {kind} in the column {name} ({shown(ids.dropna())}); store ids as text")
        table = table.assign(**{str(name): ids})
    return table


def plain_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with columns of categories as columns of what these are."""
    import pandas as pd

    categories = {name: column.cat.categories.dtype for name, column in table.items() if isinstance(column.dtype, pd.CategoricalDtype)}
    return table.astype(categories)


def read_header(path: str | Path) -> list[str]:
    """Names of a table's columns as they stand in the file, repeated and empty ones too, which pandas renames."""
    import pandas as pd

    if Path(path).name.endswith(".parquet"):
        import pyarrow.parquet

        return [str(name) for name in pyarrow.parquet.read_schema(path).names]
    row = pd.read_csv(path, header=None, nrows=1, dtype="str", keep_default_na=False)
    return [str(name) for name in row.iloc[0]]


def refuse_bomb(path: Path, what: str) -> None:
    """Refuses a gzipped table that unpacks to what no table of its size does, before memory is taken for it.

    Raises:
        InputError: It does.
        OSError: It is no gzip file, or damaged.
    """
    if path.suffix != ".gz":
        return
    limit = max(LARGEST_UNPACKED_BYTES, MOST_UNPACKED_SHARE * path.stat().st_size)
    with gzip.open(path) as stream:
        unpacked_bytes = 0
        while block := stream.read(1 << 20):
            unpacked_bytes += len(block)
            if unpacked_bytes > limit:
                raise InputError(
                    f"{what} {path} unpacks to more than {limit:,} bytes, which no table of its size does; unpack it, and name the file"
                )


def refuse_repeated(names: list[str], where: str) -> None:
    """Refuses columns of one name, of which pandas would rename the second, so that nobody would know which one counts.

    Raises:
        TableError: There are some.
    """
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise TableError(f"{where}: {len(repeated)} names stand above more than one column ({shown(repeated)}); keep one column each")


def untrained_path(path: str | Path) -> Path:
    """Where the table stands that holds what an untrained encoder makes of the same patches: M1.csv -> M1_untrained.csv."""
    name, dot, suffix = Path(path).name.partition(".")
    return Path(path).with_name(f"{name}_untrained{dot}{suffix}")


def check_table_suffix(path: str | Path, flag: str) -> None:
    """Refuses an output table whose suffix says neither CSV nor Parquet.

    Raises:
        InputError: The suffix is unknown.
    """
    if not str(path).endswith(TABLE_SUFFIXES):
        raise InputError(f"{flag} {path} must end in {', '.join(TABLE_SUFFIXES)}")
    if Path(path).is_dir():
        raise InputError(f"{flag} {path} is a folder; name a file")
    check_output_folder(Path(path).parent, flag)


def write_table(path: Path, table: pd.DataFrame, index: bool = False) -> None:
    """Writes a table as CSV or Parquet, by the suffix of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if path.name.endswith(".parquet"):
            table.to_parquet(temporary, index=index)
        else:
            table.to_csv(temporary, index=index)


class TableWriter:
    """Writes a table in blocks of rows, as CSV or Parquet by the suffix of ``path``; renamed into place when it is complete."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._replacing = replacing(path)
        self._is_parquet = path.suffix == ".parquet"
        self._parquet: Any = None
        self._is_empty = True

    def __enter__(self) -> TableWriter:
        self._temporary = self._replacing.__enter__()
        return self

    def write(self, block: pd.DataFrame) -> None:
        """Appends rows; every block has the columns of the first."""
        if not self._is_parquet:
            block.to_csv(self._temporary, mode="w" if self._is_empty else "a", header=self._is_empty, index=False)
        else:
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.Table.from_pandas(block, preserve_index=False)
            if self._parquet is None:
                # Without Arrow's own schema ids that came as categories are read as the text that they are.
                self._parquet = pyarrow.parquet.ParquetWriter(self._temporary, table.schema.remove_metadata(), store_schema=False)
            self._parquet.write_table(table.cast(self._parquet.schema))
        self._is_empty = False

    def __exit__(self, *error: Any) -> bool | None:
        if self._parquet is not None:
            self._parquet.close()
        return self._replacing.__exit__(*error)
