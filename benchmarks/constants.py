"""Constants in code that the released model writes, beside those of LLVM at the same place.

Answers of the recorded evaluation about the first functions by id, a uniform sample, are written
once more and compared (`arithmetic.constants`). Numbers only: the code is other people's.
"""

import pandas as pd

from llmopt import arithmetic, pipeline, records
from llmopt.config import InputError


def measure(functions: int) -> pd.DataFrame:
    """A row a constant: `id protocol true said in_prompt right compiles`."""
    code = records.read("code")
    texts = pipeline.test_functions().drop_duplicates("id").set_index("id").ir
    ids = sorted(set(code.id) & set(texts.index))[:functions]
    if not ids:
        raise InputError("no test function of this scale is in results/code.parquet")
    again = records.write_again(code[code.id.isin(ids)], texts, pipeline.RELEASED)
    parts = [
        arithmetic.table(arithmetic.constants(texts[row.id], row.reference, row.text)).assign(
            id=row.id, protocol=row.protocol, compiles=row.compiles
        )
        for row in again.itertuples()
    ]
    first = ["id", "protocol"]
    table = pd.concat(parts, ignore_index=True)
    return table[[*first, *table.columns.drop(first)]]
