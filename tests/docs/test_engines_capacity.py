"""docs/engines.md: the bytes and streams of its table are what the capacity commands below it say."""

from __future__ import annotations

import json
import re
import shlex

from pagedvid.cli.main import main
from tests.docs.pages import DOCS, code_blocks, tables

PAGE = DOCS / "engines.md"
CACHES = {"its own BF16": "bf16", "int4 pages": "int4", "int2 pages": "int2"}


def test_the_table_is_what_the_commands_say(capsys):
    said: dict[str, list[tuple[str, str]]] = {codec: [] for codec in CACHES.values()}
    commands = "".join(code_blocks(PAGE, "bash"))
    for command in re.findall(r"^pagedvid (capacity [^#\n]*)", commands, re.MULTILINE):
        assert main([*shlex.split(command), "--format", "json"]) == 0
        for row in json.loads(capsys.readouterr().out)["rows"]:
            said[row["codec"]].append((f"{row['stream_bytes'] / 2**30:.2f}", str(row["num_streams"])))
    (table,) = (table for table in tables(PAGE) if any(row.endswith(": int2 pages") for row in table))
    shown: dict[str, list[tuple[str, str]]] = {codec: [] for codec in CACHES.values()}
    for name, row in table.items():
        shown[CACHES[name.partition(": ")[2]]].append((row["GiB a stream"], row["streams that fit"]))
    assert shown == said and len(shown["int2"]) == 2
