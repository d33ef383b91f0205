"""Codecs of the files people have: JSON lines, CSV, Parquet, and the compressions around them.

`names` tells format and compression from a file · `compression` file → blocks of bytes · `lines` blocks → lines with
positions · `csv_rows` lines → rows · `parquet_rows` row groups → rows.
"""
