#!/usr/bin/env python3
"""Reference reader of `.cmf` archives, written from the pages of spec/ and from nothing else.

It follows their order, section numbers are those of container.md. It is made to be read and to be
right: it decodes whole tensors with numpy, one f32 operation after another, and keeps no copy of a
rule that a page states once.

    cmf_ref.py FOLDER                        check all test vectors in FOLDER/accept and FOLDER/reject
    cmf_ref.py FILE.cmf                      list tensors and attributes
    cmf_ref.py FILE.cmf --verify             the checks of section 5.3
    cmf_ref.py FILE.cmf --tensor NAME --out x.npy
    cmf_ref.py --compare FILE.cmf FILE.safetensors   are all values the same, to the bit?

Exit codes: 0 good, 1 the answer is no (invalid, differs), 2 usage.
"""

import argparse
import collections
import json
import mmap
import os
import struct
import sys
import unicodedata

import blake3
import numpy as np
import zstandard

# What the operations of the format give for infinities and NaN is meant; numpy need not warn.
np.seterr(all="ignore")

NONE = 2**32 - 1
LIMITS = {  # section 8
    "directory_bytes": 2**30,
    "records": 2**27,
    "decoded_segment_bytes": 2**30,
    "decoded_tensor_bytes": 2**32,
    "name_bytes": 4096,
    "rank": 16,
    "node_depth": 8,
    # This reader's own: elements of an array that it makes (see security.md, 3).
    "elements": 2**31,
}


class CmfError(Exception):
    """A breach of the format; `kind` is one of section 10."""

    def __init__(self, kind, *what):
        super().__init__(f"{kind}: " + " ".join(str(part) for part in what))
        self.kind = kind


def check(condition, kind, *what):
    if not condition:
        raise CmfError(kind, *what)


def within(what, found):
    check(found <= LIMITS[what], "limit", what, "expected at most", LIMITS[what], "found", found)


def ceil_div(a, b):
    return -(-a // b)


def align(offset, to):
    return ceil_div(offset, to) * to


# --- 3 Header -------------------------------------------------------------------------------------

MAGIC = bytes.fromhex("8C434D460D0A1A0A00FF0A0D")
HEADER = struct.Struct("<12sHHIIQQQQQ32sIII148s")
Header = collections.namedtuple(
    "Header",
    "magic major minor edition alignment_bytes file_bytes directory_offset directory_bytes"
    " must_understand may_ignore directory_hash chunk_group_bytes chunk_hash_segment table_count"
    " reserved",
)


def power_of_two(number, low, high):
    return low <= number <= high and number & (number - 1) == 0


def parse_header(data):
    check(len(data) and bytes(data[:12]) == MAGIC[: len(data)], "not_cmf", "no magic")
    check(len(data) >= 256, "truncated", "file ends within the header")
    header = Header._make(HEADER.unpack(data[:256]))
    check(header.major == 1, "unsupported_version", "major", header.major)
    check(header.must_understand == 0, "unsupported", "must_understand", header.must_understand)
    check(power_of_two(header.alignment_bytes, 64, 65536), "structure", "alignment_bytes")
    check(header.directory_offset == 256, "structure", "directory_offset")
    check(power_of_two(header.chunk_group_bytes, 1024, 2**30), "structure", "chunk_group_bytes")
    check(header.chunk_hash_segment in (0, NONE), "structure", "chunk_hash_segment")
    check(header.reserved == bytes(148), "structure", "header: reserved bytes")
    check(len(data) >= header.file_bytes, "truncated", "file of", header.file_bytes, "bytes")
    check(len(data) == header.file_bytes, "structure", "bytes after the end of the archive")
    within("directory_bytes", header.directory_bytes)
    check(256 + header.directory_bytes <= len(data), "truncated", "file ends within the directory")
    directory = data[256 : 256 + header.directory_bytes]
    check(blake3.blake3(directory).digest() == header.directory_hash, "hash", "directory")
    return header


# --- 3.4 Table records, and the layout of section 4 ------------------------------------------------

# kind: name, struct format of a record, fields. A string reference is read as one u64.
TABLES = {
    1: ("strings", "<B", None),
    2: ("extents", "<Q", None),
    3: ("attributes", "<QQIIQ", "name media_type segment flags reserved"),
    4: ("archives", "<Q32sIIQQ", "name identity kind flags file_bytes reserved"),
    5: ("tensors", "<QHHIIIIIQQ", "name dtype rank flags first_extent archive first_matrix"
        " matrix_count elements reserved"),
    6: ("matrices", "<QQIIIHHIIQ", "rows cols first_term term_count first_transform"
        " input_transforms output_transforms first_unit unit_count reserved"),
    7: ("transforms", "<IIQQQIIQ", "kind flags size block seed node segment reserved"),
    8: ("terms", "<IHHQQQ", "node level flags row_start col_start reserved"),
    9: ("nodes", "<IHHQQIIIHHQ", "encoding version flags rows cols descriptor_offset"
        " descriptor_bytes first_ref segment_count child_count reserved"),
    10: ("refs", "<I", None),
    11: ("descriptors", "<B", None),
    12: ("segments", "<QQQIBBH32s", "offset stored_bytes decoded_bytes first_chunk_hash compression"
         " reserved flags hash"),
    13: ("units", "<IHHIIQQQQ", "matrix level flags first_term term_count row_start rows"
         " resident_bytes reserved"),
    14: ("schedule", "<IIQQQ", "unit flags cumulative_bytes expected_loss reserved"),
}  # fmt: skip


def parse_tables(directory, table_count):
    """All known tables by name, and whether something unknown was passed over."""
    check(32 * table_count <= len(directory), "structure", "table records beyond the directory")
    tables, passed_over, end, last_kind = {}, False, 32 * table_count, 0
    for index in range(table_count):
        kind, flags, record_bytes, reserved, offset, count = struct.unpack_from(
            "<IIIIQQ", directory, 32 * index
        )
        check(kind > last_kind, "structure", "table", kind, "after table", last_kind)
        last_kind = kind
        check(reserved == 0, "structure", "table", kind, "reserved bytes")
        start = end if index == 0 else align(end, 8)
        check(offset == start, "structure", "table", kind, "expected at", start, "found", offset)
        check(offset + record_bytes * count <= len(directory), "structure", "table", kind, "size")
        check(not any(directory[end:start]), "structure", "table", kind, "bytes before it")
        end = offset + record_bytes * count
        if kind not in TABLES:
            check(flags & 1 == 0, "unsupported", "table", kind)
            passed_over = True
            continue
        name, record_format, fields = TABLES[kind]
        check(flags & 0xFFFE == 0, "unsupported", name, "flags", flags)
        check(flags & 1 == 1, "structure", name, "must be understood")
        record = struct.Struct(record_format)
        grown = fields is not None and record_bytes > record.size
        check(record_bytes == record.size or grown, "structure", name, "record_bytes", record_bytes)
        passed_over |= grown
        if record.size > 1:
            within("records", count)
        body = directory[offset:end]
        if fields is None:
            tables[name] = bytes(body) if record.size == 1 else [x for x, in record.iter_unpack(body)]
            continue
        row = collections.namedtuple(name, fields)
        starts = range(0, len(body), record_bytes)
        tables[name] = [row._make(record.unpack_from(body, start)) for start in starts]
        check(all(row.reserved == 0 for row in tables[name]), "structure", name, "reserved bytes")
    check(end == len(directory), "structure", "directory does not end with its last table")
    check(len(tables) == len(TABLES), "structure", "a table is missing")
    return tables, passed_over


# --- 4.1 Strings ----------------------------------------------------------------------------------

DIRECTION_MARKS = {chr(c) for c in [0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"
}


def is_tensor_name(name):
    return (
        name != ""
        and not any(unicodedata.category(c) == "Cc" or c in DIRECTION_MARKS for c in name)
        and not any(part in (".", "..") for part in name.split("/"))
    )


def is_file_name(name):
    return (
        is_tensor_name(name)
        and not any(c in '/\\:*?"<>|' for c in name)
        and len(name.encode()) <= 255
        and name[0] != " "
        and name[-1] not in " ."
        and name.split(".")[0].rstrip(" ").upper() not in WINDOWS_DEVICES
    )


def is_media_type(name):
    return name != "" and all(0x20 <= ord(c) <= 0x7E for c in name)


class Strings:
    """Looks strings up and remembers which were referred to."""

    def __init__(self, table):
        self.table, self.used = table, {}

    def get(self, reference, is_right):
        offset, length = reference % 2**32, reference >> 32
        if (reference, is_right) not in self.used:
            check(offset + length <= len(self.table), "structure", "string beyond its table")
            within("name_bytes", length)
            try:
                text = self.table[offset : offset + length].decode("utf-8")
            except UnicodeDecodeError:
                raise CmfError("structure", "string is not UTF-8") from None
            check(is_right(text), "structure", "not a", is_right.__name__[3:], ascii(text))
            self.used[reference, is_right] = text
        return self.used[reference, is_right]

    def check_layout(self, passed_over):
        end, last = 0, b""
        for offset, length in sorted({(ref % 2**32, ref >> 32) for ref, _ in self.used}):
            check(offset >= end if passed_over else offset == end, "structure", "strings at", offset)
            text = self.table[offset : offset + length]
            check(last < text, "structure", "strings do not ascend at", offset)
            end, last = offset + length, text
        check(passed_over or end == len(self.table), "structure", "strings table: unused bytes")


def check_ascending(names, table):
    encoded = [name.encode() for name in names]
    check(all(a < b for a, b in zip(encoded, encoded[1:])), "structure", table, "names do not ascend")


class Sequence:
    """Ranges of a table, each beginning where the one before ends, the last ending with the table."""

    def __init__(self, table, length):
        self.table, self.length, self.end = table, length, 0

    def take(self, first, count):
        check(first == self.end, "structure", self.table, "expected", self.end, "found", first)
        self.end += count
        check(self.end <= self.length, "structure", self.table, "beyond the table:", self.end)

    def finish(self):
        check(self.end == self.length, "structure", self.table, "unused records from", self.end)


# --- 4 Directory ----------------------------------------------------------------------------------

class Node:
    """A record of nodes, with its children and with `known`: None, or what is not known (4.9)."""

    def __init__(self, index, record, descriptor, segments, children):
        self.index, self.encoding, self.version = index, record.encoding, record.version
        self.rows, self.cols = record.rows, record.cols
        self.descriptor, self.segments, self.children = descriptor, segments, children
        self.depth = 1 + max((child.depth for child in children), default=0)
        self.unknown, self.fields, self.decoded = None, None, None

    def name(self):
        encoding = ENCODINGS.get(self.encoding)
        return encoding.__name__ if encoding else f"encoding {self.encoding}"


class Archive:
    """The header and the directory, checked; values and bytes on demand."""

    def __init__(self, data, path=None):
        self.data, self.path = memoryview(data), path
        self.header = parse_header(self.data)
        self.identity = blake3.blake3(self.data[:256]).digest()
        directory = self.data[256 : 256 + self.header.directory_bytes]
        tables, self.passed_over = parse_tables(directory, self.header.table_count)
        self.__dict__.update(tables)
        self.check_segments()
        self.parse_names()
        self.parse_nodes()
        self.check_terms_and_units()
        self.check_schedule()
        self.check_matrices()
        self.check_tensors()
        self.check_all_used()

    def record(self, table, index):
        rows = getattr(self, table)
        check(index < len(rows), "structure", table, "has no record", index)
        return rows[index]

    # 4.12 and the layout of 5.2
    def check_segments(self):
        header, end = self.header, 256 + self.header.directory_bytes
        for index, segment in enumerate(self.segments):
            start = align(end, header.alignment_bytes)
            check(segment.offset == start, "structure", "segment", index, "expected at", start)
            end = start + segment.stored_bytes
            check(end <= header.file_bytes, "structure", "segment", index, "beyond the file")
            raw = segment.compression == 0
            lengths_agree = segment.decoded_bytes == segment.stored_bytes
            check(lengths_agree or not raw, "structure", "segment", index, "decoded_bytes")
        check(end == header.file_bytes, "structure", "expected a file of", end, "bytes")
        self.groups = [ceil_div(s.stored_bytes, header.chunk_group_bytes) for s in self.segments]
        if header.chunk_hash_segment == 0:
            check(self.segments and self.segments[0].compression == 0, "structure", "chunk hashes")
            self.groups[0] = 1
        hashes = 0
        for index, (segment, groups) in enumerate(zip(self.segments, self.groups)):
            first = hashes if groups >= 2 else NONE
            check(segment.first_chunk_hash == first, "structure", "segment", index, "chunk hashes")
            hashes += groups if groups >= 2 else 0
        if header.chunk_hash_segment == 0:
            check(hashes > 0, "structure", "no segment has chunk hashes")
            check(self.segments[0].stored_bytes == 32 * hashes, "structure", "chunk hashes: size")
        else:
            check(hashes == 0, "structure", "there are no chunk hashes")

    # 4.1, 4.3, 4.4, and the names of 4.5
    def parse_names(self):
        strings = Strings(self.strings)
        names = [strings.get(row.name, is_file_name) for row in self.attributes]
        check_ascending(names, "attributes")
        for row in self.attributes:
            check(row.flags & 0xFFFF == 0, "unsupported", "attribute flags")
            self.record("segments", row.segment)
        media_types = [strings.get(row.media_type, is_media_type) for row in self.attributes]
        self.attribute_index = {name: index for index, name in enumerate(names)}
        self.media_types = media_types

        self.archive_names = [strings.get(row.name, is_file_name) for row in self.archives]
        check_ascending(self.archive_names, "archives")
        for row in self.archives:
            check(row.kind in (1, 2), "unsupported", "archive of kind", row.kind)
            check(row.flags & 0xFFFF == 0, "unsupported", "archive flags")

        self.names = [strings.get(row.name, is_tensor_name) for row in self.tensors]
        check_ascending(self.names, "tensors")
        self.tensor_index = {name: index for index, name in enumerate(self.names)}
        strings.check_layout(self.passed_over)

    # 4.9 to 4.11
    def parse_nodes(self):
        refs, reach, records, self.nodes = Sequence("refs", len(self.refs)), 0, self.nodes, []
        for index, row in enumerate(records):
            where = f"node {index}"
            refs.take(row.first_ref, row.segment_count + row.child_count)
            middle = row.first_ref + row.segment_count
            segments = self.refs[row.first_ref : middle]
            children = self.refs[middle : middle + row.child_count]
            for segment in segments:
                self.record("segments", segment)
            check(all(child < index for child in children), "structure", where, "child not before it")
            start, end = row.descriptor_offset, row.descriptor_offset + row.descriptor_bytes
            check(start % 8 == 0 and end % 8 == 0, "structure", where, "descriptor not aligned")
            check(end <= len(self.descriptors), "structure", where, "descriptor beyond its table")
            check(start == reach or end <= reach, "structure", where, "descriptor expected at", reach)
            reach = max(reach, end)
            descriptor = self.descriptors[start:end]
            node = Node(index, row, descriptor, segments, [self.nodes[child] for child in children])
            within("node_depth", node.depth)
            node.unknown = self.check_node(node, row.flags)
            self.nodes.append(node)
        refs.finish()
        check(reach == len(self.descriptors), "structure", "descriptors: unused bytes from", reach)

    def check_node(self, node, flags):
        """Checks at open of the encoding's page. What is not known about the node, or None."""
        encoding = ENCODINGS.get(node.encoding)
        if encoding is None or node.version != 1:
            return f"encoding {node.encoding} version {node.version}"
        if flags & 0xFF:
            return f"node flags {flags}"
        try:
            encoding.open(node, [self.segments[segment].decoded_bytes for segment in node.segments])
        except CmfError as error:
            if error.kind != "unsupported":
                raise
            return str(error)
        unreadable = [self.unreadable_segment(segment) for segment in node.segments]
        unreadable += [child.unknown for child in node.children]
        return next((reason for reason in unreadable if reason), None)

    def unreadable_segment(self, index):
        segment = self.segments[index]
        if segment.compression not in (0, 1):
            return f"segment {index}: compression {segment.compression}"
        return f"segment {index}: flags {segment.flags}" if segment.flags & 0xFF else None

    # 4.8, 4.13
    def check_terms_and_units(self):
        terms = Sequence("terms", len(self.terms))
        sequence = Sequence("units", len(self.units))
        self.refines = [None] * len(self.units)
        for index, matrix in enumerate(self.matrices):
            sequence.take(matrix.first_unit, matrix.unit_count)
            before, blocks, total = None, {}, 0
            for unit_index in range(matrix.first_unit, matrix.first_unit + matrix.unit_count):
                unit, where = self.units[unit_index], f"unit {unit_index}"
                check(unit.flags & 0xFF == 0, "unsupported", where, "flags", unit.flags)
                check(unit.matrix == index, "structure", where, "is of another matrix")
                check(unit.rows >= 1, "structure", where, "has no rows")
                end = unit.row_start + unit.rows
                check(end <= matrix.rows, "structure", where, "beyond its matrix")
                step = unit.level - (before.level if before else 0)
                check(step == 0 or (step == 1 and before), "structure", where, "level", unit.level)
                if before and step == 0:
                    after = before.row_start + before.rows
                    check(unit.row_start >= after, "structure", where, "rows do not ascend")
                if unit.level > 0:
                    refined = blocks.get((unit.level - 1, unit.row_start, unit.rows))
                    check(refined is not None, "structure", where, "refines no unit")
                    self.refines[unit_index] = refined
                blocks[unit.level, unit.row_start, unit.rows] = unit_index
                before = unit
                terms.take(unit.first_term, unit.term_count)
                total += unit.term_count
                for term in self.terms[unit.first_term : terms.end]:
                    node = self.record("nodes", term.node)
                    check(term.level == unit.level, "structure", where, "term of level", term.level)
                    check(node.rows and node.cols, "structure", where, "term without elements")
                    check(unit.row_start <= term.row_start, "structure", where, "term above its unit")
                    check(term.row_start + node.rows <= end, "structure", where, "term below its unit")
                    right = term.col_start + node.cols
                    check(right <= matrix.cols, "structure", where, "term right of its matrix")
            check(matrix.term_count == total, "structure", "matrix", index, "terms of its units", total)
        terms.finish()
        sequence.finish()

    # 4.14
    def check_schedule(self):
        check(len(self.schedule) == len(self.units), "structure", "schedule: number of units")
        seen, before = set(), 0
        for step in self.schedule:
            check(step.flags & 0xFFFE == 0, "unsupported", "schedule flags", step.flags)
            check(step.unit < len(self.units), "structure", "schedule: no unit", step.unit)
            check(step.unit not in seen, "structure", "schedule: twice unit", step.unit)
            refined = self.refines[step.unit]
            check(refined is None or refined in seen, "structure", "schedule: too early", step.unit)
            seen.add(step.unit)
            check(step.cumulative_bytes >= before, "structure", "schedule: cumulative_bytes falls")
            before = step.cumulative_bytes
            exponent = step.expected_loss >> 52 & 0x7FF
            stated = exponent < 0x7FF if step.flags & 1 else step.expected_loss == 0
            check(stated, "structure", "schedule: expected_loss")

    # 4.6, 4.7
    def check_matrices(self):
        terms = Sequence("terms", len(self.terms))
        sequence = Sequence("transforms", len(self.transforms))
        for matrix in self.matrices:
            terms.take(matrix.first_term, matrix.term_count)
            count = matrix.input_transforms + matrix.output_transforms
            sequence.take(matrix.first_transform, count)
            for number, row in enumerate(self.transforms_of(matrix)):
                is_input = number < matrix.input_transforms
                check_transform(self, row, matrix.cols if is_input else matrix.rows)
        terms.finish()
        sequence.finish()

    def transforms_of(self, matrix):
        end = matrix.first_transform + matrix.input_transforms + matrix.output_transforms
        return self.transforms[matrix.first_transform : end]

    # 4.2, 4.5
    def check_tensors(self):
        extents, new = Sequence("extents", len(self.extents)), 0
        for name, row in zip(self.names, self.tensors):
            where = f"tensor {ascii(name)}"
            check(row.dtype in DTYPES, "unsupported", where, "dtype", row.dtype)
            within("rank", row.rank)
            extents.take(row.first_extent, row.rank)
            elements = 1
            for extent in self.shape(row):
                elements *= extent
                check(elements < 2**64, "structure", where, "elements overflow")
            check(elements == row.elements, "structure", where, "elements expected", elements)

            end = row.first_matrix + row.matrix_count
            check(end <= len(self.matrices), "structure", where, "matrices beyond the table")
            tied = row.matrix_count > 0 and end <= new
            check(tied or row.first_matrix == new, "structure", where, "matrices expected at", new)
            new = max(new, end)
            matrices = self.matrices_of(row)
            shapes = {(matrix.rows, matrix.cols) for matrix in matrices}
            check(len(shapes) <= 1, "structure", where, "matrices of several shapes")
            held = sum(matrix.rows * matrix.cols for matrix in matrices)
            whole = held == elements > 0
            check(whole or not matrices, "structure", where, "matrices hold", held, "elements")

            delta = row.flags & 1
            if row.archive == NONE:
                check(not delta, "structure", where, "is a delta of nothing")
                check(matrices or elements == 0, "structure", where, "has no matrices")
            else:
                is_base = self.record("archives", row.archive).kind == 2
                check(is_base == bool(delta), "structure", where, "delta flag and archive disagree")
                check(is_base or not matrices, "structure", where, "matrices, though in a shard")
        extents.finish()
        check(new == len(self.matrices), "structure", "matrices: unused records from", new)

    def shape(self, tensor):
        return self.extents[tensor.first_extent : tensor.first_extent + tensor.rank]

    def matrices_of(self, tensor):
        return self.matrices[tensor.first_matrix : tensor.first_matrix + tensor.matrix_count]

    # 4, "nothing hides"
    def check_all_used(self):
        nodes = {term.node for term in self.terms} | {t.node for t in self.transforms}
        segments = {row.segment for row in self.attributes} | {t.segment for t in self.transforms}
        for node in self.nodes:
            nodes.update(child.index for child in node.children)
            segments.update(node.segments)
        if self.header.chunk_hash_segment == 0:
            check(0 not in segments, "structure", "segment of chunk hashes is referred to")
            segments.add(0)
        if not self.passed_over:
            unused = set(range(len(self.nodes))) - nodes
            check(not unused, "structure", "nodes without a reference:", unused)
            unused = set(range(len(self.segments))) - segments
            check(not unused, "structure", "segments without a reference:", unused)

    # --- 4.12 Bytes of segments

    def stored(self, index):
        segment = self.segments[index]
        return self.data[segment.offset : segment.offset + segment.stored_bytes]

    def segment_bytes(self, index):
        reason = self.unreadable_segment(index)
        check(reason is None, "unsupported", reason)
        segment = self.segments[index]
        if segment.compression == 0:
            return self.stored(index)
        within("decoded_segment_bytes", segment.decoded_bytes)
        return zstd_frame(self.stored(index), segment.decoded_bytes)

    def attribute(self, name):
        check(name in self.attribute_index, "argument", "no attribute", ascii(name))
        return bytes(self.segment_bytes(self.attributes[self.attribute_index[name]].segment))

    # --- 5.3 Verification

    def verify(self):
        for index in range(len(self.segments)):
            self.verify_hashes(index)
        end = 256 + self.header.directory_bytes
        for index, segment in enumerate(self.segments):
            check(not any(self.data[end : segment.offset]), "value", "bytes before segment", index)
            end = segment.offset + segment.stored_bytes
        self.verify_sums()
        for row in self.attributes:
            if self.unreadable_segment(row.segment) is None:
                self.segment_bytes(row.segment)
        known = set()
        for term in self.terms:
            self.collect_known(self.nodes[term.node], known)
        for row in self.transforms:
            if row.node != NONE:
                self.collect_known(self.nodes[row.node], known)
        for node in sorted(known, key=lambda node: node.index):
            ENCODINGS[node.encoding].payload(node, [self.segment_bytes(i) for i in node.segments])
        for row in self.transforms:
            verify_transform(self, row)

    def collect_known(self, node, known):
        if node.unknown is None and node not in known:
            known.add(node)
            for child in node.children:
                self.collect_known(child, known)

    # 5.2
    def verify_hashes(self, index):
        segment, stored = self.segments[index], self.stored(index)
        check(blake3.blake3(stored).digest() == segment.hash, "hash", "segment", index)
        if segment.first_chunk_hash == NONE:
            return
        found = group_chaining_values(stored, self.header.chunk_group_bytes)
        first = 32 * segment.first_chunk_hash
        stated = np.frombuffer(self.stored(0)[first : first + 4 * found.size], "<u4").reshape(-1, 8).T
        check(root_hash(stated) == segment.hash, "hash", "segment", index, "chaining values")
        wrong = np.flatnonzero((found != stated).any(axis=0))
        check(wrong.size == 0, "hash", "segment", index, "chunk groups", wrong)

    # 4.13, 4.14
    def verify_sums(self):
        visited_nodes, visited_segments, total = set(), set(), 0
        for step in self.schedule:
            unit = self.units[step.unit]
            resident = self.unit_bytes(unit, set(), set())
            check(unit.resident_bytes == resident, "structure", "resident_bytes of unit", step.unit)
            total += self.unit_bytes(unit, visited_nodes, visited_segments)
            check(step.cumulative_bytes == total, "structure", "cumulative_bytes of", step.unit)

    def unit_bytes(self, unit, visited_nodes, visited_segments):
        """Decoded bytes of the unit's segments that were not visited before."""
        terms = self.terms[unit.first_term : unit.first_term + unit.term_count]
        todo, total = [self.nodes[term.node] for term in terms], 0
        while todo:
            node = todo.pop()
            if node.index in visited_nodes:
                continue
            visited_nodes.add(node.index)
            todo += node.children
            for segment in set(node.segments) - visited_segments:
                visited_segments.add(segment)
                total += self.segments[segment].decoded_bytes
        return total

    # --- 6 Values

    def values(self, node):
        """Reference decode of a node: f32 [rows, cols]."""
        check(node.unknown is None, "unsupported", node.unknown)
        if node.decoded is not None:
            return node.decoded
        within("elements", node.rows * node.cols)
        if node.rows * node.cols == 0:
            return np.zeros((node.rows, node.cols), np.float32)
        values = ENCODINGS[node.encoding].values(node, *self.parts(node))
        if values.size <= 2**20:  # shared tables and codebooks are small
            node.decoded = values
        return values

    def parts(self, node):
        """The bytes of its segments and the values of its children."""
        segments = [self.segment_bytes(index) for index in node.segments]
        return segments, [self.values(child) for child in node.children]

    def unknown_term(self, term):
        if term.flags & 0xFF:
            return f"term flags {term.flags}"
        return self.nodes[term.node].unknown

    # 6.3
    def matrix_terms(self, matrix, level):
        """The terms that count, the number of those that were left out."""
        terms = self.terms[matrix.first_term : matrix.first_term + matrix.term_count]
        terms = [term for term in terms if term.level <= level]
        known = [term for term in terms if self.unknown_term(term) is None]
        for term in terms:
            optional = term.flags & 0x100
            check(optional or term in known, "unsupported", self.unknown_term(term))
        return known, len(terms) - len(known)

    def matrix_values(self, matrix, level):
        within("elements", matrix.rows * matrix.cols)
        terms, _ = self.matrix_terms(matrix, level)
        total = np.full((matrix.rows, matrix.cols), -0.0, np.float32)
        for term in terms:
            node = self.nodes[term.node]
            rows = slice(term.row_start, term.row_start + node.rows)
            cols = slice(term.col_start, term.col_start + node.cols)
            if ENCODINGS[node.encoding] is sparse and node.fields.op == 1:
                listed_rows, listed_cols, values = sparse.entries(node, *self.parts(node))
                total[rows, cols][listed_rows, listed_cols] = values
            else:
                total[rows, cols] += self.values(node)
        return apply_transforms(self, matrix, total)

    def tensor(self, name):
        check(name in self.tensor_index, "argument", "no tensor", ascii(name))
        return self.tensors[self.tensor_index[name]]

    def readable_matrices(self, tensor):
        """The tensor's matrices, if nothing in them must be understood and is not."""
        check(tensor.flags & 0xFFFE == 0, "unsupported", "tensor flags", tensor.flags)
        matrices, total = self.matrices_of(tensor), 0
        for matrix in matrices:
            terms, _ = self.matrix_terms(matrix, 2**16)
            total += sum(self.decompressed_bytes(self.nodes[term.node]) for term in terms)
            for row in self.transforms_of(matrix):
                unknown = transform_unknown(self, row)
                check(unknown is None, "unsupported", unknown)
                if row.node != NONE:
                    total += self.decompressed_bytes(self.nodes[row.node])
                if row.segment != NONE:
                    total += self.decompressed_segment(row.segment)
        within("decoded_tensor_bytes", total)
        return matrices

    # 8
    def decompressed_bytes(self, node):
        total, todo = 0, [node]
        while todo:
            node = todo.pop()
            todo += node.children
            total += sum(self.decompressed_segment(index) for index in node.segments)
            if total > LIMITS["decoded_tensor_bytes"]:
                break
        return total

    def decompressed_segment(self, index):
        segment = self.segments[index]
        return segment.decoded_bytes if segment.compression else 0

    def levels(self, tensor):
        """The highest level of the tensor's matrices."""
        units = [
            self.units[index]
            for matrix in self.matrices_of(tensor)
            for index in range(matrix.first_unit, matrix.first_unit + matrix.unit_count)
        ]
        return max((unit.level for unit in units), default=0)

    # 6.4
    def tensor_values(self, name, level=2**16):
        """Values of the matrices in this archive, in the tensor's shape."""
        tensor = self.tensor(name)
        matrices = self.readable_matrices(tensor)
        values = [self.matrix_values(matrix, level).reshape(-1) for matrix in matrices]
        values = np.concatenate(values) if len(values) > 1 else (values or [np.zeros(0, np.float32)])[0]
        return values.reshape(self.shape(tensor)) if matrices or not tensor.elements else values

    def exact_bytes(self, name, level=2**16):
        """The tensor's element bytes, or None where it is not exact."""
        tensor = self.tensor(name)
        if tensor.archive != NONE or self.readable_matrices(tensor) is None:
            return None
        parts = []
        for matrix in self.matrices_of(tensor):
            terms, left_out = self.matrix_terms(matrix, level)
            row = 0
            for term in sorted(terms, key=lambda term: term.row_start):
                node = self.nodes[term.node]
                fits = term.row_start == row and node.cols == matrix.cols
                same = node.encoding in (1, 6) and node.fields.dtype == tensor.dtype
                if not (fits and same):
                    return None
                segments = [self.segment_bytes(index) for index in node.segments]
                parts.append(ENCODINGS[node.encoding].element_bytes(node, segments))
                row += node.rows
            if left_out or row != matrix.rows or self.transforms_of(matrix):
                return None
        return b"".join(bytes(part) for part in parts)

    # 6.5
    def full_values(self, name):
        """Values of the tensor, wherever it lies."""
        tensor = self.tensor(name)
        if tensor.archive == NONE:
            return self.tensor_values(name)
        other = self.open_archive(tensor.archive)
        there = other.tensor(name)
        check(other.shape(there) == self.shape(tensor), "structure", "shape in the other archive")
        if not tensor.flags & 1:
            check(there.dtype == tensor.dtype, "structure", "dtype in the shard")
            check(there.archive == NONE, "structure", "tensor is not in the shard itself")
        base = other.full_values(name)
        if tensor.matrix_count == 0:
            self.readable_matrices(tensor)
            return base
        return base + self.tensor_values(name)

    # 4.4
    def open_archive(self, index):
        row, name = self.archives[index], self.archive_names[index]
        path = os.path.join(os.path.dirname(self.path or ""), name)
        check(os.path.isfile(path) and not os.path.islink(path), "io", "no file", ascii(name))
        other = Archive(map_file(path), path)
        is_it = other.identity == row.identity and other.header.file_bytes == row.file_bytes
        check(is_it, "hash", ascii(name), "is another archive")
        return other


# --- 4.12 Zstandard frames ------------------------------------------------------------------------


def zstd_frame(data, size):
    """The content of `data`, which is exactly one frame (RFC 8878, 3.1.1) with `size` bytes."""
    head = bytes(data[:18]).ljust(18, b"\0")
    check(head[:4] == b"\x28\xb5\x2f\xfd", "value", "no zstd frame")
    single_segment, checksum = head[4] >> 5 & 1, head[4] >> 2 & 1
    at = 5
    if not single_segment:
        window = 1 << (10 + (head[5] >> 3))
        window += window // 8 * (head[5] & 7)
        check(window <= 2**27, "value", "zstd window of", window, "bytes")
        at = 6
    dictionary_bytes = (0, 1, 2, 4)[head[4] & 3]
    dictionary = int.from_bytes(head[at : at + dictionary_bytes], "little")
    check(dictionary == 0, "value", "zstd frame with a dictionary")
    at += dictionary_bytes
    size_bytes = (single_segment, 2, 4, 8)[head[4] >> 6]
    content = int.from_bytes(head[at : at + size_bytes], "little") + (256 if size_bytes == 2 else 0)
    check(size_bytes and content == size, "value", "zstd frame of", content, "bytes, expected", size)
    at, last = at + size_bytes, False
    while not last:  # the blocks, to see that the frame ends where the bytes do
        block = int.from_bytes(data[at : at + 3], "little")
        last, is_run = block & 1, block >> 1 & 3 == 1
        at += 3 + (1 if is_run else block >> 3)
        check(at <= len(data), "value", "zstd frame is cut off")
    check(at + 4 * checksum == len(data), "value", "bytes after the zstd frame, or missing")
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(data)
        decoded = reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise CmfError("value", error) from None
    check(len(decoded) == size, "value", "zstd frame gives", len(decoded), "bytes, expected", size)
    return decoded


# --- 5.2 BLAKE3 chaining values -------------------------------------------------------------------
# The `blake3` package hashes whole inputs only, so the tree is here, over many chunks at once.
# Names are those of the BLAKE3 paper, section 2; arrays are uint32 [words, number of chunks].

IV = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19],
    np.uint32,
)
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def rotate_right(x, bits):
    return (x >> np.uint32(bits)) | (x << np.uint32(32 - bits))


def mix(a, b, c, d, mx, my):
    """The function G on four columns of the state at once."""
    a = a + b + mx
    d = rotate_right(d ^ a, 16)
    c = c + d
    b = rotate_right(b ^ c, 12)
    a = a + b + my
    d = rotate_right(d ^ a, 8)
    c = c + d
    b = rotate_right(b ^ c, 7)
    return a, b, c, d


def compress(h, message, counter, length, flags):
    """h [8, n], message [16, n], counter u64 [n] or 0: the next chaining values [8, n]."""
    count = h.shape[1]
    a, b = h[:4], h[4:]
    c = np.repeat(IV[:4, None], count, axis=1)
    d = np.empty((4, count), np.uint32)
    d[0], d[1], d[2], d[3] = counter & 0xFFFFFFFF, counter >> 32, length, flags
    order = np.arange(16)
    for _ in range(7):
        m = message[order]
        a, b, c, d = mix(a, b, c, d, m[0:8:2], m[1:8:2])
        b, c, d = b[[1, 2, 3, 0]], c[[2, 3, 0, 1]], d[[3, 0, 1, 2]]
        a, b, c, d = mix(a, b, c, d, m[8:16:2], m[9:16:2])
        b, c, d = b[[3, 0, 1, 2]], c[[2, 3, 0, 1]], d[[1, 2, 3, 0]]
        order = order[PERMUTATION]
    return np.concatenate([a ^ c, b ^ d])


def chunk_chaining_values(chunks, first):
    """uint8 [n, bytes], n chunks of at most 1024 bytes, the first with the counter `first`."""
    count, length = chunks.shape
    blocks = max(ceil_div(length, 64), 1)
    padded = np.zeros((count, blocks * 64), np.uint8)
    padded[:, :length] = chunks
    words = np.ascontiguousarray(padded.view("<u4").astype(np.uint32, copy=False).T)
    counter = np.arange(first, first + count, dtype=np.uint64)
    h = np.repeat(IV[:, None], count, axis=1)
    for block in range(blocks):
        is_last = block == blocks - 1
        flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END if is_last else 0)
        block_length = length - 64 * block if is_last else 64
        h = compress(h, words[16 * block : 16 * block + 16], counter, block_length, flags)
    return h


def parents(h, flags=PARENT):
    """One level up the tree: pairs of chaining values; a last one without a partner stays."""
    pairs = h.shape[1] // 2
    message = np.concatenate([h[:, 0 : 2 * pairs : 2], h[:, 1 : 2 * pairs : 2]])
    key = np.repeat(IV[:, None], pairs, axis=1)
    up = compress(key, message, np.zeros(pairs, np.uint64), 64, flags)
    return np.concatenate([up, h[:, 2 * pairs :]], axis=1)


def group_chaining_values(data, group_bytes):
    """Chaining values [8, groups] of the chunk groups of a segment."""
    data = np.frombuffer(data, np.uint8)
    full, at_once = len(data) // 1024, 4096
    parts = []
    for first in range(0, full, at_once):
        last = min(first + at_once, full)
        parts.append(chunk_chaining_values(data[1024 * first : 1024 * last].reshape(-1, 1024), first))
    if len(data) % 1024:
        parts.append(chunk_chaining_values(data[1024 * full :].reshape(1, -1), full))
    h = np.concatenate(parts, axis=1)
    for _ in range((group_bytes // 1024).bit_length() - 1):
        h = parents(h)
    return h


def root_hash(h):
    """The hash that two or more chaining values amount to."""
    while h.shape[1] > 2:
        h = parents(h)
    return parents(h, PARENT | ROOT).astype("<u4").T.tobytes()


# --- 6.2 Bit streams ------------------------------------------------------------------------------


def stream_bytes(count, bits):
    """Bytes of a row of codes."""
    return ceil_div(count * bits, 32) * 4


def read_codes(data, rows, count, bits):
    """Codes [rows, count] of a bit stream: each lies in three bytes, being at most 16 bits long."""
    stride = stream_bytes(count, bits)
    stream = np.zeros((rows, stride + 2), np.uint8)
    stream[:, :stride] = np.frombuffer(data, np.uint8).reshape(rows, stride)
    first_bit = np.arange(count, dtype=np.int64) * bits
    byte, shift = first_bit // 8, (first_bit % 8).astype(np.uint32)
    codes = stream[:, byte].astype(np.uint32)
    if bits > 1:
        codes |= stream[:, byte + 1].astype(np.uint32) << np.uint32(8)
    if bits > 9:
        codes |= stream[:, byte + 2].astype(np.uint32) << np.uint32(16)
    return (codes >> shift) & np.uint32(2**bits - 1)


def check_tails(data, rows, count, bits):
    """The bits after the last code of each row are 0."""
    stride, used = stream_bytes(count, bits), count * bits
    if rows * stride:
        stream = np.frombuffer(data, np.uint8).reshape(rows, stride)
        tail = stream[:, used // 8 :].copy()
        tail[:, :1] >>= np.uint8(used % 8)
        check(not tail.any(), "value", "bits after the last code of a row")


# --- Encodings: pages in spec/encodings -----------------------------------------------------------
# Each has `open` (checks at open; sets node.fields), `payload` (checks on payload, for verification)
# and `values` (decode, from the bytes of its segments and the values of its children).


def descriptor(node, record_format, fields):
    size = struct.calcsize(record_format)
    check(len(node.descriptor) == size, "structure", node.name(), "descriptor of", size, "bytes")
    row = collections.namedtuple("descriptor", fields)
    node.fields = row._make(struct.unpack(record_format, node.descriptor))
    for field in node.fields._fields:
        is_zero = not field.startswith("reserved") or getattr(node.fields, field) == 0
        check(is_zero, "structure", node.name(), "descriptor: reserved bytes")
    return node.fields


def check_parts(node, sizes, expected_sizes, expected_shapes):
    check(sizes == expected_sizes, "structure", node.name(), "segments", sizes, "not", expected_sizes)
    shapes = [(child.rows, child.cols) for child in node.children]
    fits = len(shapes) == len(expected_shapes) and all(
        rows in allowed_rows and cols in allowed_cols
        for (rows, cols), (allowed_rows, allowed_cols) in zip(shapes, expected_shapes)
    )
    check(fits, "structure", node.name(), "children", shapes, "not", expected_shapes)


# number: name, bytes, how numpy reads it (None: in dense.values)
DTYPES = {
    1: ("f64", 8, "<f8"), 2: ("f32", 4, "<f4"), 3: ("f16", 2, "<f2"), 4: ("bf16", 2, None),
    5: ("f8_e4m3", 1, None), 6: ("f8_e5m2", 1, None), 7: ("f8_e8m0", 1, None),
    8: ("i64", 8, "<i8"), 9: ("i32", 4, "<i4"), 10: ("i16", 2, "<i2"), 11: ("i8", 1, "i1"),
    12: ("u64", 8, "<u8"), 13: ("u32", 4, "<u4"), 14: ("u16", 2, "<u2"), 15: ("u8", 1, "u1"),
    16: ("bool", 1, "?"), 17: ("c64", 8, None),
    18: ("f8_e4m3fnuz", 1, None), 19: ("f8_e5m2fnuz", 1, None),
}  # fmt: skip


def minifloats(sign_bits, exponent_bits, mantissa_bits, bias):
    """The values of all codes, ascending, as f64 (which holds each of them exactly)."""
    codes = np.arange(2 ** (sign_bits + exponent_bits + mantissa_bits))
    mantissa = codes % 2**mantissa_bits
    exponent = (codes >> mantissa_bits) % 2**exponent_bits
    negative = codes >> (mantissa_bits + exponent_bits)
    significand = np.where(exponent > 0, 2**mantissa_bits + mantissa, mantissa)
    power = np.maximum(exponent, 1) - bias - mantissa_bits
    return np.copysign(np.ldexp(significand.astype(np.float64), power), 0.5 - negative)


def byte_floats(dtype):
    """The f32 values of the 256 codes of a one-byte float type."""
    if dtype == "f8_e5m2":
        return (np.arange(256, dtype=np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    if dtype == "f8_e8m0":
        table, nan = np.ldexp(1.0, np.arange(256) - 127), [0xFF]
    elif dtype == "f8_e4m3":
        table, nan = minifloats(1, 4, 3, 7), [0x7F, 0xFF]
    elif dtype == "f8_e4m3fnuz":
        table, nan = minifloats(1, 4, 3, 8), [0x80]
    else:
        table, nan = minifloats(1, 5, 2, 16), [0x80]
    table = table.astype(np.float32)
    table[nan] = np.nan
    return table


def elements_as_f32(data, dtype):
    """One f32 for each element; numpy converts to the nearest f32, ties to even."""
    name, size, numpy_type = DTYPES[dtype]
    check(name != "c64", "argument", "complex numbers have no f32 values")
    if numpy_type:
        return np.frombuffer(data, numpy_type).astype(np.float32)
    if name == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return byte_floats(name)[np.frombuffer(data, np.uint8)]


class dense:
    @staticmethod
    def open(node, sizes):
        d = descriptor(node, "<HHI", "dtype reserved0 reserved1")
        check(d.dtype in DTYPES, "unsupported", "dense dtype", d.dtype)
        check_parts(node, sizes, [node.rows * node.cols * DTYPES[d.dtype][1]], [])

    @staticmethod
    def payload(node, segments):
        pass

    @staticmethod
    def element_bytes(node, segments):
        return segments[0]

    @staticmethod
    def values(node, segments, children):
        return elements_as_f32(segments[0], node.fields.dtype).reshape(node.rows, node.cols)


class grouped:
    @staticmethod
    def open(node, sizes):
        d = descriptor(
            node,
            "<BBBBIIiBBBBiQ",
            "bits code_map scale_op zero_op group_rows group_cols offset exponent_bits mantissa_bits"
            " sign_bits special bias reserved",
        )
        check(1 <= d.bits <= 8, "structure", "grouped bits", d.bits)
        known = d.code_map <= 2 and d.scale_op <= 2 and d.zero_op <= 2 and d.special <= 2
        check(known, "unsupported", "grouped", d)
        minifloat = (d.exponent_bits, d.mantissa_bits, d.sign_bits, d.special, d.bias)
        if d.code_map == 1:
            total = d.sign_bits + d.exponent_bits + d.mantissa_bits
            right = d.sign_bits <= 1 and d.exponent_bits >= 1 and total == d.bits
            check(right and -127 <= d.bias <= 127, "structure", "grouped minifloat", d)
        else:
            check(not any(minifloat), "structure", "grouped: minifloat fields are not 0", d)
        check(d.code_map == 0 or d.offset == 0, "structure", "grouped offset", d.offset)
        down, across = (
            ceil_div(extent, size) if size and extent else min(extent, 1)
            for extent, size in ((node.rows, d.group_rows), (node.cols, d.group_cols))
        )
        shapes = [({down, 1}, {across, 1})] * (bool(d.scale_op) + bool(d.zero_op))
        if d.code_map == 2:
            shapes.append(({node.rows, 1}, {2**d.bits}))
        check_parts(node, sizes, [node.rows * stream_bytes(node.cols, d.bits)], shapes)

    @staticmethod
    def payload(node, segments):
        check_tails(segments[0], node.rows, node.cols, node.fields.bits)

    @staticmethod
    def values(node, segments, children):
        d, children = node.fields, list(children)
        codes = read_codes(segments[0], node.rows, node.cols, d.bits)
        # Group of each row and column; an array of extent 1 is broadcast by taking its index 0.
        group_row = np.arange(node.rows) // (d.group_rows or node.rows)
        group_col = np.arange(node.cols) // (d.group_cols or node.cols)

        def spread(child):
            row = group_row if child.shape[0] > 1 else group_row * 0
            return child[row[:, None], group_col if child.shape[1] > 1 else group_col * 0]

        scale = spread(children.pop(0)) if d.scale_op else None
        zero = spread(children.pop(0)) if d.zero_op else None
        if d.code_map == 0:
            v = (np.arange(2**d.bits, dtype=np.int64) + d.offset).astype(np.float32)[codes]
        elif d.code_map == 1:
            v = grouped.minifloat_table(d)[codes]
        else:
            table = children.pop(0)
            v = table[0][codes] if len(table) == 1 else np.take_along_axis(table, codes, axis=1)
        if d.zero_op == 1:
            v = v - zero
        if d.scale_op:
            v = v * scale if d.scale_op == 1 else v / scale
        if d.zero_op == 2:
            v = v + zero
        return v

    @staticmethod
    def minifloat_table(d):
        table = minifloats(d.sign_bits, d.exponent_bits, d.mantissa_bits, d.bias).astype(np.float32)
        magnitude = np.arange(2**d.bits) % 2 ** (d.exponent_bits + d.mantissa_bits)
        if d.special == 2:
            table[magnitude == 2 ** (d.exponent_bits + d.mantissa_bits) - 1] = np.nan
        if d.special == 1:
            top = (2**d.exponent_bits - 1) << d.mantissa_bits
            table[magnitude == top] = np.copysign(np.float32(np.inf), table[magnitude == top])
            table[magnitude > top] = np.nan
        return table


class sparse:
    @staticmethod
    def open(node, sizes):
        fields = "op layout index_bits reserved block_rows block_cols n m count"
        d = descriptor(node, "<BBBBIIHHQ", fields)
        check(d.op <= 1 and 1 <= d.layout <= 3, "unsupported", "sparse", d)
        check(d.block_rows and d.block_cols, "structure", "sparse block", d)
        check(d.block_rows * d.block_cols <= 65536, "structure", "sparse block", d)
        check(d.index_bits in ((16, 32) if d.layout == 1 else (0,)), "structure", "sparse", d)
        if d.layout == 3:
            check(1 <= d.n <= d.m and d.m >= 2, "structure", "sparse n of m", d)
            check(d.block_rows == d.block_cols == 1, "structure", "sparse block", d)
            kept = ceil_div(node.cols, d.m) * d.n
            check(d.count == node.rows * kept, "structure", "sparse count", d.count)
            expected = [node.rows * stream_bytes(kept, sparse.position_bits(d))]
            check_parts(node, sizes, expected, [({node.rows}, {kept})])
            return
        check(d.n == d.m == 0, "structure", "sparse n of m", d)
        check(d.count <= 2**32 - 1, "structure", "sparse count", d.count)
        down, across = ceil_div(node.rows, d.block_rows), ceil_div(node.cols, d.block_cols)
        offsets = (down + 1) * 4
        if d.layout == 1:
            expected = [offsets, d.count * d.index_bits // 8]
        else:
            expected = [offsets, down * stream_bytes(across, 1)]
        width = node.children[0].cols if node.children else 0
        check(1 <= width <= 65536, "structure", "sparse values of", width, "columns")
        elements = d.count * d.block_rows * d.block_cols
        check_parts(node, sizes, expected, [({ceil_div(elements, width)}, {width})])

    @staticmethod
    def position_bits(d):
        return (d.m - 1).bit_length()

    @staticmethod
    def blocks(node, segments):
        """Block row and block column of each entry, checked."""
        d = node.fields
        down, across = ceil_div(node.rows, d.block_rows), ceil_div(node.cols, d.block_cols)
        offsets = np.frombuffer(segments[0], "<u4").astype(np.int64)
        check(offsets[0] == 0 and offsets[-1] == d.count, "value", "sparse row_offsets: ends")
        entries = np.diff(offsets)
        check((entries >= 0).all(), "value", "sparse row_offsets descend")
        if d.layout == 1:
            rows = np.repeat(np.arange(down), entries)
            cols = np.frombuffer(segments[1], f"<u{d.index_bits // 8}").astype(np.int64)
            check((cols < across).all(), "value", "sparse column beyond the matrix")
            ascends = (np.diff(cols) > 0) | (np.diff(rows) > 0)
            check(ascends.all(), "value", "sparse columns do not ascend")
            return rows, cols
        stride = stream_bytes(across, 1)
        bitmap = np.frombuffer(segments[1], np.uint8).reshape(down, stride)
        bits = np.unpackbits(bitmap, axis=1, bitorder="little")
        check(not bits[:, across:].any(), "value", "sparse bitmap: bits beyond the matrix")
        check((bits.sum(axis=1) == entries).all(), "value", "sparse bitmap: number of bits")
        return np.nonzero(bits)

    @staticmethod
    def positions(node, segments):
        """n_m: the column of each value [rows, kept], checked."""
        d, groups = node.fields, ceil_div(node.cols, node.fields.m)
        codes = read_codes(segments[0], node.rows, groups * d.n, sparse.position_bits(d))
        codes = codes.astype(np.int64).reshape(node.rows, groups, d.n)
        check((codes < d.m).all(), "value", "sparse position beyond its group")
        check((np.diff(codes, axis=2) > 0).all(), "value", "sparse positions do not ascend")
        columns = codes + np.arange(groups)[:, None] * d.m
        return columns.reshape(node.rows, groups * d.n)

    @staticmethod
    def payload(node, segments):
        d = node.fields
        if d.layout != 3:
            sparse.blocks(node, segments)
        elif node.rows * node.cols:
            sparse.positions(node, segments)
            kept = ceil_div(node.cols, d.m) * d.n
            check_tails(segments[0], node.rows, kept, sparse.position_bits(d))

    @staticmethod
    def entries(node, segments, children):
        """Row, column and value of each listed position within the matrix."""
        d, (values,) = node.fields, children
        if d.layout == 3:
            cols = sparse.positions(node, segments)
            rows = np.broadcast_to(np.arange(node.rows)[:, None], cols.shape)
        else:
            block_row, block_col = sparse.blocks(node, segments)
            shape = (len(block_row), d.block_rows, d.block_cols)
            rows = (block_row * d.block_rows)[:, None, None] + np.arange(d.block_rows)[:, None]
            cols = (block_col * d.block_cols)[:, None, None] + np.arange(d.block_cols)
            rows, cols = np.broadcast_to(rows, shape), np.broadcast_to(cols, shape)
            values = values.reshape(-1)[: rows.size].reshape(shape)
        inside = (rows < node.rows) & (cols < node.cols)
        return rows[inside], cols[inside], values[inside]

    @staticmethod
    def values(node, segments, children):
        rows, cols, values = sparse.entries(node, segments, children)
        out = np.zeros((node.rows, node.cols), np.float32)
        out[rows, cols] = values
        return out


class low_rank:
    @staticmethod
    def open(node, sizes):
        d = descriptor(node, "<II", "rank reserved")
        check(d.rank >= 1, "structure", "low_rank of rank 0")
        check_parts(node, sizes, [], [({d.rank}, {node.rows}), ({d.rank}, {node.cols})])

    @staticmethod
    def payload(node, segments):
        pass

    @staticmethod
    def values(node, segments, children):
        a_t, b = children
        out = np.zeros((node.rows, node.cols), np.float32)
        rows_at_once = max(2**16 // node.cols, 1)  # stays in the cache
        for row in range(0, node.rows, rows_at_once):
            v = out[row : row + rows_at_once]
            for k in range(node.fields.rank):
                v += a_t[k, row : row + rows_at_once, None] * b[k]
        return out


class codebook:
    @staticmethod
    def open(node, sizes):
        fields = "codebooks bits has_scale reserved vector_rows vector_cols scale_cols"
        d = descriptor(node, "<BBBBIII", fields)
        right = d.codebooks >= 1 and 1 <= d.bits <= 16 and d.has_scale <= 1
        check(right, "structure", "codebook", d)
        elements = d.vector_rows * d.vector_cols
        check(1 <= elements <= 65536, "structure", "codebook vector of", elements, "elements")
        check(d.scale_cols % d.vector_cols == 0, "structure", "codebook scale_cols", d.scale_cols)
        check(d.has_scale or d.scale_cols == 0, "structure", "codebook scale_cols", d.scale_cols)
        down, across = ceil_div(node.rows, d.vector_rows), ceil_div(node.cols, d.vector_cols)
        shapes = [({d.codebooks << d.bits}, {elements})]
        if d.has_scale:
            scales = ceil_div(node.cols, d.scale_cols) if d.scale_cols else min(node.cols, 1)
            shapes.append(({down, 1}, {scales, 1}))
        check_parts(node, sizes, [down * stream_bytes(across * d.codebooks, d.bits)], shapes)

    @staticmethod
    def payload(node, segments):
        d = node.fields
        down, across = ceil_div(node.rows, d.vector_rows), ceil_div(node.cols, d.vector_cols)
        check_tails(segments[0], down, across * d.codebooks, d.bits)

    @staticmethod
    def values(node, segments, children):
        d = node.fields
        down, across = ceil_div(node.rows, d.vector_rows), ceil_div(node.cols, d.vector_cols)
        codes = read_codes(segments[0], down, across * d.codebooks, d.bits)
        codes = codes.reshape(down, across, d.codebooks)
        entries = children[0].reshape(d.codebooks, 2**d.bits, -1)
        v = entries[0][codes[:, :, 0]]
        for m in range(1, d.codebooks):
            v = v + entries[m][codes[:, :, m]]
        v = v.reshape(down, across, d.vector_rows, d.vector_cols).transpose(0, 2, 1, 3)
        v = v.reshape(down * d.vector_rows, across * d.vector_cols)[: node.rows, : node.cols]
        if not d.has_scale:
            return v
        scale = children[1]
        row = np.arange(node.rows) // d.vector_rows if scale.shape[0] > 1 else np.zeros(node.rows, int)
        group = d.scale_cols or node.cols
        col = np.arange(node.cols) // group if scale.shape[1] > 1 else np.zeros(node.cols, int)
        return v * scale[row[:, None], col]


class lossless:
    @staticmethod
    def open(node, sizes):
        d = descriptor(node, "<HHIQ", "dtype reserved rows_per_frame chunk_bytes")
        check(d.dtype in DTYPES, "unsupported", "lossless dtype", d.dtype)
        check(d.rows_per_frame >= 1, "structure", "lossless rows_per_frame 0")
        small = d.rows_per_frame == 1 or d.rows_per_frame * node.cols <= 2**24
        check(small, "structure", "lossless rows_per_frame", d.rows_per_frame)
        size = DTYPES[d.dtype][1]
        check(node.rows * node.cols * size < 2**64, "structure", "lossless: too many elements")
        check_parts(node, sizes, [lossless.frames(node) * size * 8, d.chunk_bytes], [])

    @staticmethod
    def frames(node):
        return ceil_div(node.rows, node.fields.rows_per_frame) if node.cols else 0

    @staticmethod
    def element_bytes(node, segments):
        d, chunks = node.fields, segments[1]
        size = DTYPES[d.dtype][1]
        ends = np.frombuffer(segments[0], "<u8").tolist()
        check((ends[-1] if ends else 0) == d.chunk_bytes, "value", "lossless: last end")
        out, start = [], 0
        for frame in range(lossless.frames(node)):
            rows = min(d.rows_per_frame, node.rows - frame * d.rows_per_frame)
            length = rows * node.cols
            planes = np.empty((length, size), np.uint8)  # an element's bytes, the highest first
            for plane in range(size):
                end = ends[frame * size + plane]
                check(start <= end <= d.chunk_bytes, "value", "lossless: ends descend")
                check(end - start <= length, "value", "lossless: chunk is too long")
                chunk, start = chunks[start:end], end
                chunk = chunk if len(chunk) == length else zstd_frame(chunk, length)
                planes[:, plane] = np.frombuffer(chunk, np.uint8)
            r = planes.view(f">u{size}").astype(f"u{size}")
            one = r.dtype.type(1)
            element = (r >> one) | (r << r.dtype.type(8 * size - 1))
            out.append(element.astype(f"<u{size}").tobytes())
        return b"".join(out)

    @staticmethod
    def payload(node, segments):
        lossless.element_bytes(node, segments)

    @staticmethod
    def values(node, segments, children):
        data = lossless.element_bytes(node, segments)
        return elements_as_f32(data, node.fields.dtype).reshape(node.rows, node.cols)


ENCODINGS = {1: dense, 2: grouped, 3: sparse, 4: low_rank, 5: codebook, 6: lossless}


# --- transforms.md --------------------------------------------------------------------------------

SCALE, SIGN_HADAMARD, PERMUTE = 1, 2, 3


def check_transform(archive, row, side):
    """Checks at open. Kinds and flags that are not known matter when a tensor is read."""
    node = archive.record("nodes", row.node) if row.node != NONE else None
    segment = archive.record("segments", row.segment) if row.segment != NONE else None
    if row.kind not in (SCALE, SIGN_HADAMARD, PERMUTE) or row.flags & 0xFFFF:
        return
    size = row.size
    check(size == side, "structure", "transform: size", size, "expected", side)
    if row.kind == SIGN_HADAMARD:
        divides = power_of_two(row.block, 1, size) and size % row.block == 0
        check(divides and node is None, "structure", "sign_hadamard", row)
        if segment:
            right = row.seed == 0 and segment.decoded_bytes == stream_bytes(size, 1)
            check(right, "structure", "sign_hadamard: stored signs", row)
        return
    check(row.block == row.seed == 0, "structure", "transform: block or seed", row)
    if row.kind == SCALE:
        check(node and not segment, "structure", "scale: node and no segment", row)
        check((node.rows, node.cols) == (1, size), "structure", "scale: shape of its node", row)
    else:
        check(segment and not node, "structure", "permute: segment and no node", row)
        check(segment.decoded_bytes == 4 * size, "structure", "permute: size of its segment", row)


def verify_transform(archive, row):
    """Checks on payload."""
    if transform_unknown(archive, row):
        return
    if row.kind == SIGN_HADAMARD and row.segment != NONE:
        check_tails(archive.segment_bytes(row.segment), 1, row.size, 1)
    if row.kind == PERMUTE:
        permutation(archive, row)


def transform_unknown(archive, row):
    """What is not known about the transform, or None."""
    if row.kind not in (SCALE, SIGN_HADAMARD, PERMUTE) or row.flags & 0xFFFF:
        return f"transform of kind {row.kind}, flags {row.flags}"
    if row.node != NONE:
        return archive.nodes[row.node].unknown
    return archive.unreadable_segment(row.segment) if row.segment != NONE else None


def permutation(archive, row):
    p = np.frombuffer(archive.segment_bytes(row.segment), "<u4").astype(np.int64)
    once = (p < row.size).all() and (np.bincount(p, minlength=row.size) == 1).all()
    check(once, "value", "permute: not a permutation")
    return p


def negative_signs(archive, row):
    if row.segment != NONE:
        return read_codes(archive.segment_bytes(row.segment), 1, row.size, 1)[0] == 1
    if row.seed == 0:
        return np.zeros(row.size, bool)
    k = np.arange(1, ceil_div(row.size, 64) + 1, dtype=np.uint64)
    z = np.uint64(row.seed) + k * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.unpackbits(z.astype("<u8").view(np.uint8), bitorder="little")[: row.size] == 1


def hadamard(v, block):
    """On each row of v."""
    h = 1
    while h < block:
        pairs = v.reshape(-1, 2, h)
        low, high = pairs[:, 0], pairs[:, 1]
        v = np.stack([low + high, low - high], axis=1).reshape(v.shape)
        h *= 2
    return v * np.float32(1 / np.sqrt(np.float64(block)))


def on_output_side(archive, row, v):
    """What the transform does to each row of v [n, size] where it stands on the output side."""
    if row.kind == SCALE:
        return v * archive.values(archive.nodes[row.node])
    if row.kind == SIGN_HADAMARD:
        v = hadamard(v, row.block)
        return np.where(negative_signs(archive, row), -v, v)
    out = np.empty_like(v)
    out[:, permutation(archive, row)] = v
    return out


def apply_transforms(archive, matrix, v):
    transforms = archive.transforms_of(matrix)
    for row in reversed(transforms[: matrix.input_transforms]):
        v = on_output_side(archive, row, v)
    for row in transforms[matrix.input_transforms :]:
        v = on_output_side(archive, row, np.ascontiguousarray(v.T)).T
    return np.ascontiguousarray(v)


# --- 6.4 Rounding to an element type --------------------------------------------------------------


def rounded_bytes(values, dtype):
    """Little-endian element bytes of f32 values that are not exact."""
    name, size, numpy_type = DTYPES[dtype]
    check(name != "c64", "argument", "complex numbers are not rounded to")
    if name[0] == "f" and numpy_type:
        return values.astype(numpy_type).tobytes()
    if name == "bf16":
        bits = values.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()
    if name == "bool":
        return (values != 0).astype(np.uint8).tobytes()
    if numpy_type:
        limits = np.iinfo(numpy_type)
        return np.array(
            [0 if x != x else min(max(limits.min, x if abs(x) == np.inf else int(x)), limits.max)
             for x in np.rint(values).reshape(-1).tolist()], numpy_type
        ).tobytes()  # fmt: skip
    raise CmfError("argument", "this reader does not round to", name)


# --- Command line ---------------------------------------------------------------------------------


def map_file(path):
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def describe(archive, node):
    """An encoding and those of its children: `grouped 4 bits (dense f16, dense u8)`."""
    text = node.name()
    if node.unknown is None:
        text += "".join(
            f" {DTYPES[value][0] if field == 'dtype' else f'{field} {value}'}"
            for field, value in node.fields._asdict().items()
            if field in ("dtype", "bits", "rank", "codebooks", "layout")
        )
    children = ", ".join(describe(archive, child) for child in node.children)
    return f"{text} ({children})" if children else text


def list_archive(archive):
    for name, tensor in zip(archive.names, archive.tensors):
        terms = collections.Counter(
            describe(archive, archive.nodes[term.node])
            for matrix in archive.matrices_of(tensor)
            for term in archive.terms[matrix.first_term : matrix.first_term + matrix.term_count]
        )
        what = " + ".join(f"{count} x {text}" if count > 1 else text for text, count in terms.items())
        if tensor.archive != NONE:
            what = f"in {ascii(archive.archive_names[tensor.archive])[1:-1]} {what}"
        print(ascii(name)[1:-1], DTYPES[tensor.dtype][0], archive.shape(tensor), what, sep="\t")
    for name, media_type in zip(archive.attribute_index, archive.media_types):
        size = archive.segments[archive.attributes[archive.attribute_index[name]].segment].decoded_bytes
        print("attribute", ascii(name)[1:-1], media_type, f"{size} bytes", sep="\t")


def read_safetensors(path):
    """Name: (dtype, shape, bytes)."""
    data = memoryview(map_file(path))
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + header_bytes]))
    header.pop("__metadata__", None)
    body = data[8 + header_bytes :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def same_bits(a, b):
    """Elementwise, with one NaN as good as another."""
    return (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))


def compare(archive, safetensors):
    """Prints differences of the values, returns their number."""
    differences = 0
    for name in sorted(set(archive.names) | set(safetensors)):
        if name not in safetensors or name not in archive.tensor_index:
            problem = "is only in one of the files"
        else:
            dtype, shape, data = safetensors[name]
            values = archive.full_values(name)
            if dtype != "F32":
                problem = f"is {dtype}, not F32"
            elif list(values.shape) != shape:
                problem = f"has shapes {list(values.shape)} and {shape}"
            else:
                there = np.frombuffer(data, "<f4")
                wrong = np.flatnonzero(~same_bits(values.reshape(-1), there))
                first = wrong[:1].tolist()
                problem = wrong.size and (
                    f"differs in {wrong.size} of {there.size} elements, first at {first[0]}:"
                    f" {values.reshape(-1)[first[0]]} and {there[first[0]]}"
                )
        if problem:
            differences += 1
            print(f"{ascii(name)}: {problem}")
    print(f"{len(archive.names)} tensors compared, {differences} differ")
    return differences


# The vectors: spec/README.md says what their JSON holds.


def check_accept(data, path, expected):
    archive = Archive(data, path)
    archive.verify()
    check(archive.identity.hex() == expected["identity"], "differs", "identity")
    tensors = expected.get("tensors", [])
    check(archive.names == [tensor["name"] for tensor in tensors], "differs", "names", archive.names)
    for tensor in tensors:
        check_accept_tensor(archive, tensor)
    attributes = expected.get("attributes", [])
    names = [attribute["name"] for attribute in attributes]
    check(list(archive.attribute_index) == names, "differs", "attributes", archive.attribute_index)
    for attribute, media_type in zip(attributes, archive.media_types):
        check(media_type == attribute["media_type"], "differs", "media type", media_type)
        found = archive.attribute(attribute["name"]).hex()
        check(found == attribute["bytes"], "differs", "attribute", attribute["name"])
    references = [
        (name, {1: "shard", 2: "base"}[row.kind], row.identity.hex(), row.file_bytes)
        for name, row in zip(archive.archive_names, archive.archives)
    ]
    stated = [
        (row["name"], row["kind"], row["identity"], row["file_bytes"])
        for row in expected.get("references", [])
    ]
    check(references == stated, "differs", "references", references)


def check_accept_tensor(archive, expected):
    name = expected["name"]
    where, tensor = f"tensor {ascii(name)}", archive.tensor(name)
    found = DTYPES[tensor.dtype][0], list(archive.shape(tensor))
    check(found == (expected["dtype"], expected["shape"]), "differs", where, found)
    reference = expected.get("reference")
    check((tensor.archive == NONE) == (reference is None), "differs", where, "reference")
    if reference:
        found = archive.archive_names[tensor.archive]
        check(found == reference["archive"], "differs", where, "archive", ascii(found))
        kind = {1: "shard", 2: "base"}[archive.archives[tensor.archive].kind]
        check(kind == reference["kind"], "differs", where, "reference of kind", kind)
    if not expected["readable"]:
        kind = error_kind(lambda: archive.tensor_values(name))
        check(kind == "unsupported", "differs", where, "is read, or refused with", kind)
        return
    for level in expected.get("levels", []):
        number = level["level"]
        matrices = archive.readable_matrices(tensor)
        rows = [row for matrix in matrices for row in archive.matrix_values(matrix, number)]
        check(len(rows) == len(level["values"]), "differs", where, "number of rows", len(rows))
        for row, (found, words) in enumerate(zip(rows, level["values"])):
            words = words.split()
            bits = [0x7FC00000 if word == "nan" else int(word, 16) for word in words]
            same = same_bits(np.ascontiguousarray(found), np.array(bits, np.uint32).view(np.float32))
            check(len(words) == len(found) and same.all(), "differs", where, "level", number, "row", row)
        left_out = sum(archive.matrix_terms(matrix, number)[1] for matrix in matrices)
        check(left_out == level["left_out"], "differs", where, "left out:", left_out)
    exact = archive.exact_bytes(name)
    found = None if exact is None else exact.hex()
    check(found == expected.get("elements"), "differs", where, "elements", found)


def error_kind(action):
    """The kind of the error that the action ends in, or None."""
    try:
        action()
    except CmfError as error:
        return error.kind
    return None


def check_reject(data, path, expected):
    stage = "parse"
    kind = error_kind(lambda: Archive(data, path))
    if kind is None and expected["fails_at"] != "parse":
        stage, archive = expected["fails_at"], Archive(data, path)
        if stage == "verify":
            kind = error_kind(archive.verify)
        elif "attribute" in expected:
            kind = error_kind(lambda: archive.attribute(expected["attribute"]))
        else:
            kind = error_kind(lambda: archive.tensor_values(expected["tensor"]))
    right = (stage, kind) == (expected["fails_at"], expected["kind"])
    check(right, "differs", f"{stage} gives {kind}, not {expected['fails_at']} {expected['kind']}")


def run_vectors(folder):
    passed = failed = 0
    for half, check_one in (("accept", check_accept), ("reject", check_reject)):
        for parent, _, files in sorted(os.walk(os.path.join(folder, half))):
            for file in sorted(file for file in files if file.endswith(".cmf")):
                path = os.path.join(parent, file)
                try:
                    with open(path[: -len("cmf")] + "json", encoding="utf-8") as text:
                        expected = json.load(text)
                    check_one(map_file(path), path, expected)
                    passed += 1
                except Exception as error:  # whatever it is, this vector has not passed
                    failed += 1
                    print(f"{path}: {type(error).__name__}: {error}")
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


def main(arguments):
    parser = argparse.ArgumentParser(description="Reference reader of .cmf archives.")
    parser.add_argument("path", help="a .cmf file, or a folder of test vectors")
    parser.add_argument("safetensors", nargs="?", help="with --compare: what to compare with")
    parser.add_argument("--compare", action="store_true", help="compare all values with a safetensors file")
    parser.add_argument("--verify", action="store_true", help="check hashes, padding, sums and payload")
    parser.add_argument("--tensor", help="name of a tensor to decode")
    parser.add_argument("--out", help="the .npy file to write it to")
    options = parser.parse_args(arguments)
    if options.compare != (options.safetensors is not None):
        parser.error("--compare wants a .cmf file and a .safetensors file")
    if bool(options.tensor) != bool(options.out):
        parser.error("--tensor and --out go together")
    if os.path.isdir(options.path):
        return run_vectors(options.path)
    try:
        archive = Archive(map_file(options.path), options.path)
        if options.verify:
            archive.verify()
            print("verified", archive.identity.hex())
        if options.compare:
            return 1 if compare(archive, read_safetensors(options.safetensors)) else 0
        if options.tensor:
            np.save(options.out, archive.full_values(options.tensor))
        elif not options.verify:
            list_archive(archive)
    except CmfError as error:
        print(f"{options.path}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
