#!/usr/bin/env bash
# array_record 0.8.6, ArrayRecordReader.read: one record by its number.
#
# Expected: read([i]), which its users call for random access (Grain's data source among them), costs what read(i, i + 1)
# costs: both give the one record i.
# Seen: a list of numbers costs about ten times as much CPU time as a range (46 and 4 us a record of 300 bytes), with every
# option of the reader.
#
# Fails when the list costs less than three times as much.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile array_record==0.8.6
"$folder/venv/bin/python" - "$folder/records" <<'PYTHON'
import random
import sys
import time
from importlib import metadata

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

path = sys.argv[1]
writer = ArrayRecordWriter(path, "group_size:1")
for i in range(20_000):
    writer.write(b"%300d" % i)
writer.close()
numbers = random.Random(0).choices(range(20_000), k=3_000)


def microseconds(read):
    """CPU time of a record, the least of three rounds."""
    rounds = []
    for _ in range(3):
        begin = time.process_time()
        found = [read(i) for i in numbers]
        rounds.append((time.process_time() - begin) / len(numbers) * 1e6)
        assert found == [[b"%300d" % i] for i in numbers]
    return min(rounds)


print("array_record", metadata.version("array_record"))
for options in ("", "readahead_buffer_size:0", "readahead_buffer_size:0,max_parallelism:0"):
    reader = ArrayRecordReader(path, options)
    listed, ranged = microseconds(lambda i: reader.read([i])), microseconds(lambda i: reader.read(i, i + 1))
    print(f"{options or 'default options'}: read([i]) {listed:.1f} us, read(i, i + 1) {ranged:.1f} us")
    assert listed > 3 * ranged
PYTHON
