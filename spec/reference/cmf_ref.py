#!/usr/bin/env python3
"""Reference reader of `.cmf` archives, written from the pages of spec/ and from nothing else.

It follows their order; section numbers are those of container.md. It is made to be read and to be
right: whole tensors are decoded with numpy, one f32 operation after another.

Its sections, in order, each under a line `# --- NAME ---`: header, table records, strings, directory, frames,
chaining values, bit streams, element types, encodings, transforms, limits, vectors, command line.

    cmf_ref.py FOLDER                                check all test vectors in FOLDER
    cmf_ref.py FILE.cmf                              list tensors and attributes
    cmf_ref.py FILE.cmf --verify                     the checks of section 5.3
    cmf_ref.py FILE.cmf --tensor NAME --out x.npy    the values of a tensor
    cmf_ref.py --compare FILE.cmf FILE.safetensors   is all the same, to the bit?

Exit codes: 0 good, 1 the answer is no (invalid, differs), 2 usage or I/O.
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

np.seterr(all="ignore")  # overflow to infinity and invalid operations are part of the arithmetic
NONE = 2**32 - 1
TOP = 2**16  # a level above all levels


class CmfError(Exception):
    """A breach of the format; `kind` is one of section 10."""

    def __init__(self, kind, *what):
        super().__init__(f"{kind}: " + " ".join(str(part) for part in what))
        self.kind = kind


def check(condition, kind, *what):
    if not condition:
        raise CmfError(kind, *what)


def rule(condition, *what):
    check(condition, "structure", *what)


def ceil_div(a, b):
    return -(-a // b)


def align(offset, to):
    return ceil_div(offset, to) * to


def power_of_two(number, low, high):
    return low <= number <= high and number & (number - 1) == 0


# --- 3 Header --------------------------------------------------------------------------------------

MAGIC = bytes.fromhex("8C434D460D0A1A0A00FF0A0D")
HEADER = struct.Struct("<12sHHIIQQQQQ32sIII148s")
Header = collections.namedtuple(
    "Header",
    "magic major minor edition alignment_bytes file_bytes directory_offset directory_bytes must_understand"
    " may_ignore directory_hash chunk_group_bytes chunk_hash_segment table_count reserved",
)


def parse_header(data):
    check(len(data) and bytes(data[:12]) == MAGIC[: len(data)], "not_cmf", "no magic")
    check(len(data) >= 256, "truncated", "file ends within the header")
    header = Header._make(HEADER.unpack(data[:256]))
    check(header.major == 1, "unsupported_version", "major", header.major)
    check(header.must_understand == 0, "unsupported", "must_understand", header.must_understand)
    rule(power_of_two(header.alignment_bytes, 64, 65536), "header: alignment_bytes")
    rule(header.directory_offset == 256, "header: directory_offset")
    rule(power_of_two(header.chunk_group_bytes, 1024, 2**30), "header: chunk_group_bytes")
    rule(header.chunk_hash_segment in (0, NONE), "header: chunk_hash_segment")
    rule(not any(header.reserved), "header: reserved bytes")
    check(len(data) >= header.file_bytes, "truncated", "expected", header.file_bytes, "bytes")
    rule(len(data) == header.file_bytes, "bytes after the end of the archive")
    within("directory_bytes", header.directory_bytes)
    check(256 + header.directory_bytes <= len(data), "truncated", "file ends within the directory")
    found = blake3.blake3(data[256 : 256 + header.directory_bytes]).digest()
    check(found == header.directory_hash, "hash", "directory")
    return header


# --- 3.4 Table records -----------------------------------------------------------------------------

# The tables of section 4. kind: name, struct format of a record, fields. A string reference is one u64.
TABLES = {
    1: ("strings", "<B", None),
    2: ("extents", "<Q", None),
    3: ("attributes", "<QQIIQ", "name media_type segment flags reserved"),
    4: ("archives", "<Q32sIIQQ", "name identity kind flags file_bytes reserved"),
    5: ("tensors", "<QHHIIIIIQQ",
        "name dtype rank flags first_extent archive first_matrix matrix_count elements reserved"),
    6: ("matrices", "<QQIIIHHIIQ",
        "rows cols first_term term_count first_transform input_transforms output_transforms first_unit"
        " unit_count reserved"),
    7: ("transforms", "<IIQQQIIQ", "kind flags size block seed node segment reserved"),
    8: ("terms", "<IHHQQQ", "node level flags row_start col_start reserved"),
    9: ("nodes", "<IHHQQIIIHHQ",
        "encoding version flags rows cols descriptor_offset descriptor_bytes first_ref segment_count"
        " child_count reserved"),
    10: ("refs", "<I", None),
    11: ("descriptors", "<B", None),
    12: ("segments", "<QQQIBBH32s",
         "offset stored_bytes decoded_bytes first_chunk_hash compression reserved flags hash"),
    13: ("units", "<IHHIIQQQQ",
         "matrix level flags first_term term_count row_start rows resident_bytes reserved"),
    14: ("schedule", "<IIQQQ", "unit flags cumulative_bytes expected_loss reserved"),
}  # fmt: skip


def parse_tables(directory, table_count):
    """The records of each known table by its name; whether something unknown was passed over."""
    rule(32 * table_count <= len(directory), "table records beyond the directory")
    tables, passed_over, end, last_kind = {}, False, 32 * table_count, 0
    for index in range(table_count):
        record = struct.unpack_from("<IIIIQQ", directory, 32 * index)
        kind, flags, record_bytes, reserved, offset, count = record
        rule(kind > last_kind, "table", kind, "after table", last_kind)
        rule(reserved == 0, "table", kind, "reserved bytes")
        start = align(end, 8) if index else end
        rule(offset == start, "table", kind, "at", offset, "expected", start)
        if kind not in (1, 11):  # strings, descriptors
            within("records", count)
        rule(offset + record_bytes * count <= len(directory), "table", kind, "beyond the directory")
        rule(not any(directory[end:start]), "bytes before table", kind)
        end, last_kind = offset + record_bytes * count, kind
        if kind not in TABLES:
            check(flags & 1 == 0, "unsupported", "table", kind)
            passed_over = True
            continue
        name, record_format, fields = TABLES[kind]
        check(flags & 0xFFFE == 0, "unsupported", name, "flags", flags)
        rule(flags & 1 == 1, name, "must be understood")
        layout = struct.Struct(record_format)
        grown = fields is not None and record_bytes > layout.size
        rule(record_bytes == layout.size or grown, name, "record_bytes", record_bytes)
        passed_over |= grown
        body = directory[offset:end]
        if layout.size == 1:
            tables[name] = bytes(body)
            continue
        records = [layout.unpack_from(body, start) for start in range(0, len(body), record_bytes)]
        if fields is None:
            tables[name] = [number for (number,) in records]
        else:
            tables[name] = list(map(collections.namedtuple(name, fields)._make, records))
            rule(all(record.reserved == 0 for record in tables[name]), name, "reserved bytes")
    rule(end == len(directory), "the directory does not end with its last table")
    rule(len(tables) == len(TABLES), "a table is missing")
    return tables, passed_over


class Sequence:
    """Ranges of a table, each beginning where the one before ends, the last ending with the table."""

    def __init__(self, name, table):
        self.name, self.length, self.end = name, len(table), 0

    def take(self, first, count):
        rule(first == self.end, self.name, "from", first, "expected from", self.end)
        self.end += count
        rule(self.end <= self.length, self.name, "up to", self.end, "of", self.length)

    def finish(self):
        rule(self.end == self.length, self.name, "from", self.end, "on belong to nothing")


# --- 4.1 Strings -----------------------------------------------------------------------------------

DIRECTIONS = {chr(c) for c in [0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
DEVICES |= {port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"}


def is_tensor_name(name):
    shown = not any(unicodedata.category(c) == "Cc" or c in DIRECTIONS for c in name)
    return name != "" and shown and not any(part in (".", "..") for part in name.split("/"))


def is_file_name(name):
    return (
        is_tensor_name(name)
        and not any(c in '/\\:*?"<>|' for c in name)
        and len(name.encode()) <= 255
        and name[0] != " "
        and name[-1] not in " ."
        and name.split(".")[0].rstrip(" ").encode().upper().decode() not in DEVICES  # upper case of ASCII
    )


def is_media_type(name):
    return name != "" and all(0x20 <= ord(c) <= 0x7E for c in name)


class Strings:
    """Looks strings up, and remembers which were referred to."""

    def __init__(self, table):
        self.table, self.used = table, set()
        self.decode(0, len(table))

    def decode(self, offset, length):
        try:
            return self.table[offset : offset + length].decode("utf-8")
        except UnicodeDecodeError:
            raise CmfError("structure", "strings at", offset, "are not UTF-8") from None

    def get(self, reference, is_right):
        offset, length = reference % 2**32, reference >> 32
        within("name_bytes", length)
        rule(offset + length <= len(self.table), "string beyond its table")
        text = self.decode(offset, length)
        rule(is_right(text), ascii(text), is_right.__name__, "is false")
        self.used.add((offset, length))
        return text

    def names(self, records, is_right):
        """The names of a table's records, which ascend."""
        names = [self.get(record.name, is_right) for record in records]
        encoded = [name.encode() for name in names]
        rule(all(a < b for a, b in zip(encoded, encoded[1:])), "names do not ascend")
        return names

    def check_layout(self, passed_over):
        end, last = 0, b""
        for offset, length in sorted(self.used):
            rule(offset == end or passed_over and offset > end, "strings at", end, "then at", offset)
            text = self.table[offset : offset + length]
            rule(last < text, "strings do not ascend at", offset)
            end, last = offset + length, text
        rule(passed_over or end == len(self.table), "strings from", end, "on belong to nothing")


# --- 4 Directory -----------------------------------------------------------------------------------


ARCHIVES = {1: "shard", 2: "base"}


class Node:
    """A record of nodes with its descriptor and children. `unknown`: what is not known about it."""

    def __init__(self, index, record, descriptor, segments, children):
        self.index, self.encoding, self.version, self.flags = index, *record[:3]
        self.rows, self.cols = record.rows, record.cols
        self.descriptor, self.segments, self.children = descriptor, segments, children
        self.depth = 1 + max((child.depth for child in children), default=0)
        self.tree = 1 + sum(child.tree for child in children)
        self.unknown = self.fields = self.decoded = None

    def name(self):
        known = self.encoding in ENCODINGS
        return ENCODINGS[self.encoding].name if known else f"encoding {self.encoding}"


class Archive:
    """Header and directory, checked; bytes and values on demand."""

    def __init__(self, data, path=""):
        self.data, self.path = memoryview(data), path
        self.header = parse_header(self.data)
        self.identity = blake3.blake3(self.data[:256]).digest()
        self.payload_start = 256 + self.header.directory_bytes
        directory = self.data[256 : self.payload_start]
        tables, self.passed_over = parse_tables(directory, self.header.table_count)
        self.__dict__.update(tables)
        self.check_names()
        self.check_segments()
        self.parse_nodes()
        self.check_matrices()
        self.check_schedule()
        self.check_tensors()
        self.check_all_used()

    def record(self, table, index):
        records = getattr(self, table)
        rule(index < len(records), table, "has no record", index)
        return records[index]

    # 4.1, 4.3, 4.4, and the names of 4.5
    def check_names(self):
        strings = Strings(self.strings)
        self.attribute_names = strings.names(self.attributes, is_file_name)
        self.media_types = [strings.get(row.media_type, is_media_type) for row in self.attributes]
        for row in self.attributes:
            check(row.flags & 0xFFFF == 0, "unsupported", "attribute: flags", row.flags)
            self.record("segments", row.segment)
        self.archive_names = strings.names(self.archives, is_file_name)
        for row in self.archives:
            check(row.kind in ARCHIVES, "unsupported", "archive of kind", row.kind)
            check(row.flags & 0xFFFF == 0, "unsupported", "archive: flags", row.flags)
        self.names = strings.names(self.tensors, is_tensor_name)
        self.index = {name: index for index, name in enumerate(self.names)}
        strings.check_layout(self.passed_over)

    # 4.12, and what 5.2 says about records
    def check_segments(self):
        header, end = self.header, self.payload_start
        for index, segment in enumerate(self.segments):
            start = align(end, header.alignment_bytes)
            rule(segment.offset == start, "segment", index, "at", segment.offset, "expected", start)
            end = start + segment.stored_bytes
            is_raw, agree = segment.compression == 0, segment.decoded_bytes == segment.stored_bytes
            rule(agree or not is_raw, "segment", index, "decoded_bytes")
        rule(end == header.file_bytes, "segments end at", end, "the file at", header.file_bytes)
        has_hashes, hashes = header.chunk_hash_segment == 0, 0
        for index, segment in enumerate(self.segments):
            groups = ceil_div(segment.stored_bytes, header.chunk_group_bytes)
            groups = 0 if groups < 2 or has_hashes and index == 0 else groups
            expected = hashes if groups else NONE
            rule(segment.first_chunk_hash == expected, "segment", index, "first_chunk_hash")
            hashes += groups
        rule((hashes > 0) == has_hashes, "chunk_hash_segment, with", hashes, "chunk groups")
        if has_hashes:
            first = self.segments[0]
            rule(first.compression == 0 and first.stored_bytes == 32 * hashes, "segment of chunk hashes")

    # 4.9 to 4.11
    def parse_nodes(self):
        refs, reach, records, self.nodes = Sequence("refs", self.refs), 0, self.nodes, []
        for index, row in enumerate(records):
            where = f"node {index}:"
            middle = row.first_ref + row.segment_count
            refs.take(row.first_ref, row.segment_count + row.child_count)
            segments, children = self.refs[row.first_ref : middle], self.refs[middle : refs.end]
            for segment in segments:
                self.record("segments", segment)
            rule(all(child < index for child in children), where, "children", children)
            start, end = row.descriptor_offset, row.descriptor_offset + row.descriptor_bytes
            rule(start % 8 == 0 and end % 8 == 0, where, "descriptor not aligned")
            rule(start == reach or end <= reach, where, "descriptor at", start, "expected", reach)
            rule(end <= len(self.descriptors), where, "descriptor beyond its table")
            reach = max(reach, end)
            children = [self.nodes[child] for child in children]
            node = Node(index, row, self.descriptors[start:end], segments, children)
            within("node_depth", node.depth)
            within("node_tree", node.tree)
            node.unknown = self.what_is_unknown(node)
            self.nodes.append(node)
        refs.finish()
        rule(reach == len(self.descriptors), "descriptors from", reach, "on belong to nothing")

    def what_is_unknown(self, node):
        """Checks a node as the page of its encoding says. The first thing that is not known, or None."""
        if node.encoding not in ENCODINGS or node.version != 1 or node.flags & 0xFF:
            return f"encoding {node.encoding} version {node.version} flags {node.flags}"
        try:
            sizes = [self.segments[index].decoded_bytes for index in node.segments]
            ENCODINGS[node.encoding].open(node, sizes)
        except CmfError as error:
            if error.kind != "unsupported":
                raise
            return str(error)
        reasons = [self.unreadable_segment(index) for index in node.segments]
        return next(filter(None, reasons + [child.unknown for child in node.children]), None)

    def unreadable_segment(self, index):
        segment = self.segments[index]
        if segment.compression > 1 or segment.flags & 0xFF:
            return f"segment {index}: compression {segment.compression} flags {segment.flags}"
        return None

    # 4.6 to 4.8, 4.13
    def check_matrices(self):
        terms, units = Sequence("terms", self.terms), Sequence("units", self.units)
        transforms = Sequence("transforms", self.transforms)
        self.refines = {}  # of a unit: the unit that it refines
        for index, matrix in enumerate(self.matrices):
            rule(matrix.first_term == terms.end, "matrix", index, "first_term")
            units.take(matrix.first_unit, matrix.unit_count)
            self.check_units(index, matrix, terms)
            rule(matrix.first_term + matrix.term_count == terms.end, "matrix", index, "term_count")
            within("transforms", max(matrix.input_transforms, matrix.output_transforms))
            transforms.take(matrix.first_transform, matrix.input_transforms + matrix.output_transforms)
            for number, row in enumerate(self.transforms_of(matrix)):
                check_transform(self, row, matrix.cols if number < matrix.input_transforms else matrix.rows)
        for sequence in (terms, units, transforms):
            sequence.finish()

    def check_units(self, matrix_index, matrix, terms):
        last, places = None, {}
        for index in range(matrix.first_unit, matrix.first_unit + matrix.unit_count):
            unit, where = self.units[index], f"unit {index}:"
            check(unit.flags & 0xFF == 0, "unsupported", where, "flags", unit.flags)
            rule(unit.matrix == matrix_index, where, "is of another matrix")
            end = unit.row_start + unit.rows
            rule(unit.rows >= 1 and end <= matrix.rows, where, "rows up to", end, "of", matrix.rows)
            is_next = last is not None and unit.level == last.level + 1
            rule(is_next or unit.level == (last.level if last else 0), where, "level", unit.level)
            if last and not is_next:
                rule(unit.row_start >= last.row_start + last.rows, where, "rows do not ascend")
            if unit.level > 0:
                self.refines[index] = places.get((unit.level - 1, unit.row_start, unit.rows))
                rule(self.refines[index] is not None, where, "refines nothing")
            last, places[unit.level, unit.row_start, unit.rows] = unit, index
            terms.take(unit.first_term, unit.term_count)
            for term in self.terms[unit.first_term : terms.end]:
                node = self.record("nodes", term.node)
                rule(term.level == unit.level, where, "has a term of level", term.level)
                rule(node.rows and node.cols, where, "has a term without elements")
                rule(unit.row_start <= term.row_start, where, "has a term above it")
                rule(term.row_start + node.rows <= end, where, "has a term below it")
                rule(term.col_start + node.cols <= matrix.cols, where, "has a term right of the matrix")

    # 4.14
    def check_schedule(self):
        rule(len(self.schedule) == len(self.units), "schedule of", len(self.schedule), "steps")
        seen, last_bytes = set(), 0
        for step in self.schedule:
            where = f"schedule, unit {step.unit}:"
            check(step.flags & 0xFFFE == 0, "unsupported", where, "flags", step.flags)
            rule(step.unit < len(self.units) and step.unit not in seen, where, "is not or comes twice")
            rule(step.unit not in self.refines or self.refines[step.unit] in seen, where, "comes too early")
            rule(step.cumulative_bytes >= last_bytes, where, "cumulative_bytes falls")
            is_finite = step.expected_loss >> 52 & 0x7FF < 0x7FF
            rule(is_finite if step.flags & 1 else step.expected_loss == 0, where, "expected_loss")
            last_bytes = step.cumulative_bytes
            seen.add(step.unit)

    # 4.2, 4.5
    def check_tensors(self):
        extents, new = Sequence("extents", self.extents), 0
        for name, row in zip(self.names, self.tensors):
            where = f"tensor {ascii(name)}:"
            check(row.dtype in DTYPES, "unsupported", where, "dtype", row.dtype)
            within("rank", row.rank)
            extents.take(row.first_extent, row.rank)
            elements = 1
            for extent in self.shape(row):
                elements *= extent
                rule(elements < 2**64, where, "elements overflow")
            rule(elements == row.elements, where, row.elements, "elements, expected", elements)
            end = row.first_matrix + row.matrix_count
            is_tied = row.matrix_count > 0 and end <= new
            rule(is_tied or row.first_matrix == new, where, "matrices from", row.first_matrix)
            rule(end <= len(self.matrices), where, "matrices up to", end)
            new = max(new, end)
            matrices = self.matrices_of(row)
            rule(len({(m.rows, m.cols) for m in matrices}) <= 1, where, "matrices of several shapes")
            held = sum(m.rows * m.cols for m in matrices)
            rule(not matrices or held == elements > 0, where, "matrices hold", held, "elements")
            is_delta = bool(row.flags & 1)
            if row.archive == NONE:
                rule(not is_delta and (matrices or elements == 0), where, "is not here")
            else:
                is_base = ARCHIVES[self.record("archives", row.archive).kind] == "base"
                rule(is_base == is_delta and (is_base or not matrices), where, "in a shard or of a base?")
        extents.finish()
        rule(new == len(self.matrices), "matrices from", new, "on belong to nothing")

    def shape(self, tensor):
        return self.extents[tensor.first_extent : tensor.first_extent + tensor.rank]

    def matrices_of(self, tensor):
        return self.matrices[tensor.first_matrix : tensor.first_matrix + tensor.matrix_count]

    def transforms_of(self, matrix):
        end = matrix.first_transform + matrix.input_transforms + matrix.output_transforms
        return self.transforms[matrix.first_transform : end]

    # 4: nothing hides
    def check_all_used(self):
        nodes = {row.node for row in self.terms + self.transforms}
        segments = {row.segment for row in self.attributes + self.transforms}
        for node in self.nodes:
            nodes.update(child.index for child in node.children)
            segments.update(node.segments)
        if self.header.chunk_hash_segment == 0:
            rule(0 not in segments, "the segment of chunk hashes is shared")
            segments.add(0)
        if not self.passed_over:
            rule(nodes >= set(range(len(self.nodes))), "a node belongs to nothing")
            rule(segments >= set(range(len(self.segments))), "a segment belongs to nothing")

    # --- 4.12 Bytes

    def stored(self, index):
        segment = self.segments[index]
        return self.data[segment.offset : segment.offset + segment.stored_bytes]

    def segment_bytes(self, index):
        unreadable, segment = self.unreadable_segment(index), self.segments[index]
        check(not unreadable, "unsupported", unreadable)
        if segment.compression == 0:
            return self.stored(index)
        within("decoded_segment_bytes", segment.decoded_bytes)
        return zstd_frame(self.stored(index), segment.decoded_bytes)

    def attribute(self, name):
        check(name in self.attribute_names, "argument", "no attribute", ascii(name))
        return bytes(self.segment_bytes(self.attributes[self.attribute_names.index(name)].segment))

    # --- 5.3 Verification

    def verify(self):
        end = self.payload_start
        for index, segment in enumerate(self.segments):
            self.verify_hashes(index, segment)
            check(not any(self.data[end : segment.offset]), "value", "bytes before segment", index)
            end = segment.offset + segment.stored_bytes
        self.verify_sums()
        for row in self.attributes:
            if not self.unreadable_segment(row.segment):
                self.segment_bytes(row.segment)
        tops = [row.node for row in self.terms] + [row.node for row in self.transforms if row.node != NONE]
        todo, seen = [self.nodes[index] for index in tops], set()
        while todo:
            node = todo.pop()
            if node.unknown is None and node not in seen:
                seen.add(node)
                todo += node.children
                segments = [self.segment_bytes(index) for index in node.segments]
                (ENCODINGS[node.encoding].payload or (lambda *_: None))(node, segments)
        for row in self.transforms:
            verify_transform(self, row)

    # 5.2
    def verify_hashes(self, index, segment):
        stored, first = self.stored(index), 32 * segment.first_chunk_hash
        check(blake3.blake3(stored).digest() == segment.hash, "hash", "segment", index)
        if segment.first_chunk_hash != NONE:
            found = group_chaining_values(stored, self.header.chunk_group_bytes)
            stated = np.frombuffer(self.stored(0)[first : first + found.nbytes], "<u4").reshape(-1, 8).T
            check(root_hash(stated) == segment.hash, "hash", "segment", index, "chaining values")
            wrong = np.flatnonzero((found != stated).any(axis=0))
            check(wrong.size == 0, "hash", "segment", index, "chunk groups", wrong)

    # 4.13, 4.14
    def verify_sums(self):
        seen, total = (set(), set()), 0
        for step in self.schedule:
            unit = self.units[step.unit]
            rule(unit.resident_bytes == self.unit_bytes(unit, (set(), set())), "unit", step.unit, "bytes")
            total += self.unit_bytes(unit, seen)
            rule(step.cumulative_bytes == total, "schedule, unit", step.unit, "cumulative_bytes")

    def unit_bytes(self, unit, seen):
        """Decoded bytes of the unit's segments that were not seen before."""
        seen_nodes, seen_segments = seen
        terms = self.terms[unit.first_term : unit.first_term + unit.term_count]
        todo, total = [self.nodes[term.node] for term in terms], 0
        while todo:
            node = todo.pop()
            if node not in seen_nodes:
                seen_nodes.add(node)
                todo += node.children
                fresh = set(node.segments) - seen_segments
                seen_segments |= fresh
                total += sum(self.segments[index].decoded_bytes for index in fresh)
        return total

    # --- 6 Values

    def values(self, node):
        """Reference decode of a node: f32 [rows, cols]."""
        check(node.unknown is None, "unsupported", node.unknown)
        if node.decoded is None:
            within("elements", node.rows * node.cols)
            if node.rows * node.cols == 0:
                return np.zeros((node.rows, node.cols), np.float32)
            values = ENCODINGS[node.encoding].values(node, *self.parts(node))
            if values.size > 2**20:
                return values
            node.decoded = values  # kept: many nodes may share a small one
        return node.decoded

    def parts(self, node):
        """The bytes of a node's segments, the values of its children."""
        segments = [self.segment_bytes(index) for index in node.segments]
        return segments, [self.values(child) for child in node.children]

    # 6.3
    def matrix_terms(self, matrix, level):
        """The terms up to the level, less those left out, and the number of those."""
        terms, left_out = [], 0
        for term in self.terms[matrix.first_term : matrix.first_term + matrix.term_count]:
            if term.level <= level:
                unknown = self.nodes[term.node].unknown or (term.flags & 0xFF and f"term flags {term.flags}")
                check(not unknown or term.flags & 0x100, "unsupported", unknown)
                terms += [] if unknown else [term]
                left_out += bool(unknown)
        return terms, left_out

    def matrix_values(self, matrix, level):
        within("elements", matrix.rows * matrix.cols)
        total = np.full((matrix.rows, matrix.cols), -0.0, np.float32)
        for term in self.matrix_terms(matrix, level)[0]:
            node = self.nodes[term.node]
            region = total[term.row_start :, term.col_start :][: node.rows, : node.cols]
            if node.encoding == 3 and node.fields.op == 1:
                rows, cols, values = sparse_entries(node, *self.parts(node))
                region[rows, cols] = values
            else:
                region += self.values(node)
        return apply_transforms(self, matrix, total)

    # 6.4
    def tensor(self, name):
        check(name in self.index, "argument", "no tensor", ascii(name))
        return self.tensors[self.index[name]]

    def readable_matrices(self, tensor):
        """The tensor's matrices, after a look at all that must be understood and at the limits of 8."""
        check(tensor.flags & 0xFFFE == 0, "unsupported", "tensor: flags", tensor.flags)
        matrices, todo, segments, total = self.matrices_of(tensor), [], [], 0
        for matrix in matrices:
            todo += [self.nodes[term.node] for term in self.matrix_terms(matrix, TOP)[0]]
            for row in self.transforms_of(matrix):
                unknown = transform_unknown(self, row)
                check(not unknown, "unsupported", unknown)
                todo += [self.nodes[row.node]] if row.node != NONE else []
                segments += [row.segment] if row.segment != NONE else []
        while todo or segments:
            if todo:
                node = todo.pop()
                todo += node.children
                segments += node.segments
            while segments:
                segment = self.segments[segments.pop()]
                total += segment.decoded_bytes if segment.compression else 0
            within("decoded_tensor_bytes", total)
        return matrices

    def tensor_values(self, name, level=TOP):
        """The values of the matrices in this archive, one after another: f32 [elements]."""
        matrices = self.readable_matrices(self.tensor(name))
        values = [self.matrix_values(matrix, level).reshape(-1) for matrix in matrices]
        return np.concatenate(values or [np.zeros(0, np.float32)])

    def exact_bytes(self, name, level=TOP):
        """The tensor's element bytes, or None where it is not exact."""
        tensor, parts = self.tensor(name), []
        if tensor.archive != NONE:
            return None
        for matrix in self.readable_matrices(tensor):
            terms, left_out = self.matrix_terms(matrix, level)
            end = 0
            for term in terms:
                node = self.nodes[term.node]
                is_next = term.row_start == end and node.cols == matrix.cols
                if not is_next or node.encoding not in (1, 6) or node.fields.dtype != tensor.dtype:
                    return None
                segments = [self.segment_bytes(index) for index in node.segments]
                parts.append(segments[0] if node.encoding == 1 else lossless_bytes(node, segments))
                end += node.rows
            if left_out or end != matrix.rows or self.transforms_of(matrix):
                return None
        return b"".join(parts)

    # 6.5
    def full_values(self, name):
        """The values of the tensor, wherever it lies: f32 [elements]."""
        tensor = self.tensor(name)
        if tensor.archive == NONE:
            return self.tensor_values(name)
        other = self.open_archive(tensor.archive)
        there = other.tensor(name)
        rule(other.shape(there) == self.shape(tensor), ascii(name), "has another shape there")
        if not tensor.flags & 1:
            rule(there.dtype == tensor.dtype, ascii(name), "has another dtype in the shard")
            rule(there.archive == NONE, ascii(name), "is not in the shard itself")
        base = other.full_values(name)
        own = self.tensor_values(name)
        return base + own if own.size else base

    # 4.4
    def open_archive(self, index):
        row, name = self.archives[index], self.archive_names[index]
        path = os.path.join(os.path.dirname(self.path), name)
        check(os.path.isfile(path) and not os.path.islink(path), "io", "no file", ascii(name))
        other = Archive(map_file(path), path)
        is_it = other.identity == row.identity and other.header.file_bytes == row.file_bytes
        check(is_it, "hash", ascii(name), "is another archive")
        return other


# --- 4.12 Zstandard frames -------------------------------------------------------------------------


def zstd_frame(data, size):
    """The content of `data`, which is exactly one frame (RFC 8878, 3.1.1) of `size` bytes of content."""
    head = bytes(data[:18]).ljust(18, b"\0")
    check(head[:4] == b"\x28\xb5\x2f\xfd", "value", "no zstd frame")
    is_single_segment, has_checksum, at = head[4] >> 5 & 1, head[4] >> 2 & 1, 5
    if not is_single_segment:
        window = (1 << 10 + (head[5] >> 3)) // 8 * (8 + (head[5] & 7))
        check(window <= 2**27, "value", "zstd window of", window, "bytes")
        at = 6
    dictionary_end = at + (0, 1, 2, 4)[head[4] & 3]
    check(not any(head[at:dictionary_end]), "value", "zstd frame with a dictionary")
    size_bytes = (is_single_segment, 2, 4, 8)[head[4] >> 6]
    at = dictionary_end + size_bytes
    content = int.from_bytes(head[dictionary_end:at], "little") + (256 if size_bytes == 2 else 0)
    check(size_bytes and content == size, "value", "zstd frame states", content, "bytes, expected", size)
    is_last = False
    while not is_last:  # block headers, to see that the frame ends where the bytes do
        block = int.from_bytes(data[at : at + 3], "little")
        is_last, is_run = block & 1, block >> 1 & 3 == 1
        at += 3 + (1 if is_run else block >> 3)
        check(at <= len(data), "value", "zstd frame is cut off")
    check(at + 4 * has_checksum == len(data), "value", "zstd frame is cut off, or bytes follow it")
    try:
        decoded = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(data).read(size + 1)
    except zstandard.ZstdError as error:
        raise CmfError("value", error) from None
    check(len(decoded) == size, "value", "zstd frame gives", len(decoded), "bytes, expected", size)
    return decoded


# --- 5.2 Chaining values of BLAKE3 -----------------------------------------------------------------
# The `blake3` package hashes whole inputs only, so its tree is here, for many chunks at once. Names are
# those of the BLAKE3 paper, section 2. Chaining values are uint32 [8, n].

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
IV = np.array(IV, np.uint32)[:, None]
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def rotate_right(x, bits):
    return (x >> np.uint32(bits)) | (x << np.uint32(32 - bits))


def mix(a, b, c, d, mx, my):
    """The function G, on four columns or diagonals of the state at once."""
    a = a + b + mx
    d = rotate_right(d ^ a, 16)
    c = c + d
    b = rotate_right(b ^ c, 12)
    a = a + b + my
    d = rotate_right(d ^ a, 8)
    c = c + d
    return a, rotate_right(b ^ c, 7), c, d


def compress(h, message, counter, length, flags):
    """Chaining values from h [8, n], blocks [16, n], counters u64 [n]."""
    a, b, c, d = h[:4], h[4:], np.repeat(IV[:4], h.shape[1], axis=1), np.empty_like(h[:4])
    d[0], d[1], d[2], d[3] = counter & 0xFFFFFFFF, counter >> 32, length, flags
    for _ in range(7):
        a, b, c, d = mix(a, b, c, d, message[0:8:2], message[1:8:2])
        b, c, d = b[[1, 2, 3, 0]], c[[2, 3, 0, 1]], d[[3, 0, 1, 2]]
        a, b, c, d = mix(a, b, c, d, message[8::2], message[9::2])
        b, c, d = b[[3, 0, 1, 2]], c[[2, 3, 0, 1]], d[[1, 2, 3, 0]]
        message = message[PERMUTATION]
    return np.concatenate([a ^ c, b ^ d])


def chunk_chaining_values(chunks, first):
    """Of uint8 [n, bytes]: n chunks, of at most 1024 bytes each, the first with the counter `first`."""
    (count, length), blocks = chunks.shape, ceil_div(chunks.shape[1], 64)
    padded = np.zeros((count, blocks * 64), np.uint8)
    padded[:, :length] = chunks
    words = np.ascontiguousarray(padded.view("<u4").astype(np.uint32).T)
    counter, h = np.arange(first, first + count, dtype=np.uint64), np.repeat(IV, count, axis=1)
    for block in range(blocks):
        is_last = block == blocks - 1
        flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END if is_last else 0)
        block_bytes = length - 64 * block if is_last else 64
        h = compress(h, words[16 * block : 16 * block + 16], counter, block_bytes, flags)
    return h


def parents(h, flags=PARENT):
    """One level up the tree: pairs become one, a last one without a partner stays."""
    paired = h.shape[1] // 2 * 2
    blocks = np.concatenate([h[:, 0:paired:2], h[:, 1:paired:2]])
    counter = np.zeros(paired // 2, np.uint64)
    up = compress(np.repeat(IV, paired // 2, axis=1), blocks, counter, 64, flags)
    return np.concatenate([up, h[:, paired:]], axis=1)


def group_chaining_values(data, group_bytes):
    """Of the chunk groups of a segment."""
    data, at_once, parts = np.frombuffer(data, np.uint8), 4096, []
    full = len(data) // 1024
    for first in range(0, full, at_once):
        chunks = data[1024 * first : 1024 * min(first + at_once, full)]
        parts.append(chunk_chaining_values(chunks.reshape(-1, 1024), first))
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


# --- 6.2 Bit streams -------------------------------------------------------------------------------


def stream_bytes(count, bits):
    """Bytes of a row of codes."""
    return ceil_div(count * bits, 32) * 4


def read_codes(data, rows, count, bits):
    """Codes [rows, count] of a bit stream. A code of at most 16 bits lies within three bytes."""
    stride = stream_bytes(count, bits)
    stream = np.zeros((rows, stride + 2), np.uint8)
    stream[:, :stride] = np.frombuffer(data, np.uint8).reshape(rows, stride)
    first_bit = np.arange(count) * bits
    byte, shift = first_bit // 8, (first_bit % 8).astype(np.uint32)
    codes = stream[:, byte].astype(np.uint32)
    for number in range(1, 1 + (bits > 1) + (bits > 9)):
        codes |= stream[:, byte + number].astype(np.uint32) << np.uint32(8 * number)
    return (codes >> shift) & np.uint32(2**bits - 1)


def check_tails(data, rows, count, bits):
    """The bits after the last code of each row are 0."""
    stride, used = stream_bytes(count, bits), count * bits
    if rows * stride:
        tail = np.frombuffer(data, np.uint8).reshape(rows, stride)[:, used // 8 :].copy()
        tail[:, :1] >>= np.uint8(used % 8)
        check(not tail.any(), "value", "bits after the last code of a row")


# --- 6.4 Element types, with the table of dense.md -------------------------------------------------

# number: name, bytes, how numpy reads it (None: below)
DTYPES = {
    1: ("f64", 8, "<f8"), 2: ("f32", 4, "<f4"), 3: ("f16", 2, "<f2"), 4: ("bf16", 2, None),
    5: ("f8_e4m3", 1, None), 6: ("f8_e5m2", 1, None), 7: ("f8_e8m0", 1, None),
    8: ("i64", 8, "<i8"), 9: ("i32", 4, "<i4"), 10: ("i16", 2, "<i2"), 11: ("i8", 1, "i1"),
    12: ("u64", 8, "<u8"), 13: ("u32", 4, "<u4"), 14: ("u16", 2, "<u2"), 15: ("u8", 1, "u1"),
    16: ("bool", 1, "?"), 17: ("c64", 8, None),
    18: ("f8_e4m3fnuz", 1, None), 19: ("f8_e5m2fnuz", 1, None),
}  # fmt: skip


def minifloats(sign_bits, exponent_bits, mantissa_bits, bias):
    """The values of all codes in ascending order of codes: f64, which holds each of them exactly."""
    codes = np.arange(2 ** (sign_bits + exponent_bits + mantissa_bits))
    mantissa, exponent = codes % 2**mantissa_bits, (codes >> mantissa_bits) % 2**exponent_bits
    significand = np.where(exponent > 0, 2**mantissa_bits + mantissa, mantissa).astype(np.float64)
    magnitude = np.ldexp(significand, np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.where(codes >> (mantissa_bits + exponent_bits), -magnitude, magnitude)


def byte_floats(name):
    """The f32 values of the 256 codes of a one-byte float type."""
    if name == "f8_e5m2":
        return (np.arange(256, dtype=np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    table, nan = {
        "f8_e8m0": (np.ldexp(1.0, np.arange(256) - 127), [0xFF]),
        "f8_e4m3": (minifloats(1, 4, 3, 7), [0x7F, 0xFF]),
        "f8_e4m3fnuz": (minifloats(1, 4, 3, 8), [0x80]),
        "f8_e5m2fnuz": (minifloats(1, 5, 2, 16), [0x80]),
    }[name]
    table = table.astype(np.float32)
    table[nan] = np.nan
    return table


def elements_to_f32(data, dtype):
    """A f32 for each element; numpy's conversions round to nearest, ties to even."""
    name, _, numpy_type = DTYPES[dtype]
    check(name != "c64", "argument", "complex numbers have no f32 values")
    if numpy_type:
        return np.frombuffer(data, numpy_type).astype(np.float32)
    if name == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return byte_floats(name)[np.frombuffer(data, np.uint8)]


def f32_to_elements(values, dtype):
    """The elements, as integers where numpy lacks the type, to which f32 values are rounded."""
    name, _, numpy_type = DTYPES[dtype]
    check(name != "c64", "argument", "values are not rounded to complex numbers")
    if name == "bf16":
        bits = values.view(np.uint32)
        even = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(values), 0x7FC0, even).astype("<u2")
    if numpy_type and name[0] in "iu":
        low, high = int(np.iinfo(numpy_type).min), int(np.iinfo(numpy_type).max)
        whole = np.where(np.isnan(values), 0, np.rint(values)).astype(np.float64)
        inside = (whole >= low) & (whole < high)  # as f64 a high of 64 bits is one more
        out = np.where(whole < 0, low, high).astype(numpy_type)
        out[inside] = whole[inside].astype(numpy_type)
        return out
    if numpy_type:
        return values.astype(numpy_type)
    table, is_signed = byte_floats(name), name != "f8_e8m0"
    half = table[:128] if is_signed else table
    half = half[np.isfinite(half)].astype(np.float64)
    middles = (half[:-1] + half[1:]) / 2
    magnitude = np.abs(values) if is_signed else np.maximum(values, 0)
    code = np.searchsorted(middles, magnitude)
    is_tie = np.append(middles, np.inf)[code] == magnitude
    code = code + (is_tie & (code % 2 == 1))
    code = np.where(np.isinf(values) & (name == "f8_e5m2"), 0x7C, np.minimum(code, len(half) - 1))
    has_minus_zero = not name.endswith("fnuz")
    minus = np.signbit(values) & is_signed & ((code > 0) | has_minus_zero)
    nan = np.flatnonzero(np.isnan(table))[0]
    return np.where(np.isnan(values), nan, code | np.where(minus, 0x80, 0)).astype(np.uint8)


# --- Encodings: the pages in spec/encodings --------------------------------------------------------
# For each: checks at open (which set node.fields), checks on payload (None: there are none), and decode,
# from the bytes of the segments and the values of the children.

Encoding = collections.namedtuple("Encoding", "name open payload values")


def parse_descriptor(node, record_format, fields):
    layout = struct.Struct(record_format)
    rule(len(node.descriptor) == layout.size, node.name(), "descriptor of", len(node.descriptor), "bytes")
    node.fields = collections.namedtuple(node.name(), fields)._make(layout.unpack(node.descriptor))
    reserved = [value for name, value in node.fields._asdict().items() if name.startswith("reserved")]
    rule(not any(reserved), node.name(), "descriptor: reserved bytes")
    return node.fields


def check_parts(node, sizes, expected_sizes, expected_shapes):
    """A shape is the set of allowed numbers of rows, and that of columns."""
    rule(sizes == expected_sizes, node.name(), "segments of", sizes, "bytes, expected", expected_sizes)
    shapes = [(child.rows, child.cols) for child in node.children]
    fits = len(shapes) == len(expected_shapes) and all(
        rows in rows_allowed and cols in cols_allowed
        for (rows, cols), (rows_allowed, cols_allowed) in zip(shapes, expected_shapes)
    )
    rule(fits, node.name(), "children", shapes, "expected", expected_shapes)


def broadcast(child, rows, cols):
    """Elements [rows, cols] of a child, whose only row or column serves all."""
    rows = rows if child.shape[0] > 1 else np.zeros_like(rows)
    return child[rows[:, None], cols if child.shape[1] > 1 else np.zeros_like(cols)]


# dense


def dense_open(node, sizes):
    d = parse_descriptor(node, "<HHI", "dtype reserved reserved2")
    check(d.dtype in DTYPES, "unsupported", "dense: dtype", d.dtype)
    check_parts(node, sizes, [node.rows * node.cols * DTYPES[d.dtype][1]], [])


def dense_values(node, segments, children):
    return elements_to_f32(segments[0], node.fields.dtype).reshape(node.rows, node.cols)


# grouped


def grouped_open(node, sizes):
    fields = "bits code_map scale_op zero_op group_rows group_cols offset exponent_bits mantissa_bits"
    d = parse_descriptor(node, "<BBBBIIiBBBBiQ", fields + " sign_bits special bias reserved")
    rule(1 <= d.bits <= 8, "grouped: bits", d.bits)
    check(d.code_map <= 2, "unsupported", d)
    if d.code_map == 1:
        rule(d.sign_bits <= 1 and d.exponent_bits >= 1 and -127 <= d.bias <= 127, d)
        rule(d.sign_bits + d.exponent_bits + d.mantissa_bits == d.bits, d)
        check(d.special <= 2, "unsupported", d)
    else:
        rule(not any((d.exponent_bits, d.mantissa_bits, d.sign_bits, d.special, d.bias)), d)
    rule(d.code_map == 0 or d.offset == 0, d)
    check(d.scale_op <= 2 and d.zero_op <= 2, "unsupported", d)
    down = ceil_div(node.rows, d.group_rows) if d.group_rows else min(node.rows, 1)
    across = ceil_div(node.cols, d.group_cols) if d.group_cols else min(node.cols, 1)
    shapes = [({down, 1}, {across, 1})] * ((d.scale_op > 0) + (d.zero_op > 0))
    shapes += [({node.rows, 1}, {2**d.bits})] if d.code_map == 2 else []
    check_parts(node, sizes, [node.rows * stream_bytes(node.cols, d.bits)], shapes)


def grouped_payload(node, segments):
    check_tails(segments[0], node.rows, node.cols, node.fields.bits)


def grouped_values(node, segments, children):
    d, children = node.fields, iter(children)
    codes = read_codes(segments[0], node.rows, node.cols, d.bits)
    rows = np.arange(node.rows) // (d.group_rows or node.rows)
    cols = np.arange(node.cols) // (d.group_cols or node.cols)
    scale = broadcast(next(children), rows, cols) if d.scale_op else None
    zero = broadcast(next(children), rows, cols) if d.zero_op else None
    if d.code_map == 0:
        v = (np.arange(2**d.bits, dtype=np.int64) + d.offset).astype(np.float32)[codes]
    elif d.code_map == 1:
        v = grouped_minifloats(d)[codes]
    else:
        table = next(children)
        v = np.take_along_axis(np.broadcast_to(table, (node.rows, 2**d.bits)), codes, axis=1)
    if d.zero_op == 1:
        v = v - zero
    if d.scale_op:
        v = v * scale if d.scale_op == 1 else v / scale
    if d.zero_op == 2:
        v = v + zero
    return v


def grouped_minifloats(d):
    """The values of all codes."""
    table = minifloats(d.sign_bits, d.exponent_bits, d.mantissa_bits, d.bias).astype(np.float32)
    unsigned = np.arange(2**d.bits) % 2 ** (d.exponent_bits + d.mantissa_bits)
    infinity = (2**d.exponent_bits - 1) << d.mantissa_bits
    if d.special == 1:
        table = np.where(unsigned == infinity, np.copysign(np.float32(np.inf), table), table)
        table[unsigned > infinity] = np.nan
    if d.special == 2:
        table[unsigned == unsigned.max()] = np.nan
    return table


# sparse


def sparse_open(node, sizes):
    d = parse_descriptor(node, "<BBBBIIHHQ", "op layout index_bits reserved block_rows block_cols n m count")
    check(d.op <= 1 and 1 <= d.layout <= 3, "unsupported", d)
    rule(1 <= d.block_rows * d.block_cols <= 65536, d)
    rule(d.index_bits in ((16, 32) if d.layout == 1 else (0,)), d)
    if d.layout == 3:
        kept = sparse_kept(node) if d.m else 0
        rule(1 <= d.n <= d.m >= 2 and d.block_rows * d.block_cols == 1, d)
        rule(d.count == node.rows * kept, d)
        sizes_expected, shape = [node.rows * stream_bytes(kept, sparse_bits(d))], ({node.rows}, {kept})
    else:
        rule(d.n == d.m == 0 and d.count < 2**32, d)
        down, across = ceil_div(node.rows, d.block_rows), ceil_div(node.cols, d.block_cols)
        bitmap_bytes, columns_bytes = down * stream_bytes(across, 1), d.count * d.index_bits // 8
        sizes_expected = [(down + 1) * 4, columns_bytes if d.layout == 1 else bitmap_bytes]
        width = node.children[0].cols if node.children else 0
        rule(1 <= width <= 65536, "sparse: values of", width, "columns")
        shape = ({ceil_div(d.count * d.block_rows * d.block_cols, width)}, {width})
    check_parts(node, sizes, sizes_expected, [shape])


def sparse_kept(node):
    return ceil_div(node.cols, node.fields.m) * node.fields.n


def sparse_bits(d):
    return (d.m - 1).bit_length()


def sparse_blocks(node, segments):
    """csr, bitmap: the block row and block column of each entry, checked."""
    d = node.fields
    down, across = ceil_div(node.rows, d.block_rows), ceil_div(node.cols, d.block_cols)
    offsets = np.frombuffer(segments[0], "<u4").astype(np.int64)
    check(offsets[0] == 0 and offsets[-1] == d.count, "value", "sparse: first or last row offset")
    check((np.diff(offsets) >= 0).all(), "value", "sparse: row offsets descend")
    if d.layout == 1:
        rows = np.repeat(np.arange(down), np.diff(offsets))
        cols = np.frombuffer(segments[1], f"<u{d.index_bits // 8}").astype(np.int64)
        check((cols < across).all(), "value", "sparse: column beyond the matrix")
        check(((np.diff(cols) > 0) | (np.diff(rows) > 0)).all(), "value", "sparse: columns do not ascend")
        return rows, cols
    bitmap = np.frombuffer(segments[1], np.uint8).reshape(down, stream_bytes(across, 1))
    bits = np.unpackbits(bitmap, axis=1, bitorder="little")
    check(not bits[:, across:].any(), "value", "sparse: bits beyond the matrix")
    check((bits.sum(axis=1) == np.diff(offsets)).all(), "value", "sparse: number of bits")
    return np.nonzero(bits)


def sparse_columns(node, segments):
    """n_m: the column of each value [rows, kept], checked."""
    d, kept = node.fields, sparse_kept(node)
    codes = read_codes(segments[0], node.rows, kept, sparse_bits(d)).astype(np.int64)
    groups = codes.reshape(node.rows, kept // d.n, d.n)
    check((codes < d.m).all(), "value", "sparse: position beyond its group")
    check((np.diff(groups, axis=2) > 0).all(), "value", "sparse: positions do not ascend")
    return codes + np.arange(kept) // d.n * d.m


def sparse_payload(node, segments):
    if node.fields.layout != 3:
        sparse_blocks(node, segments)
    elif node.rows * node.cols:
        sparse_columns(node, segments)
        check_tails(segments[0], node.rows, sparse_kept(node), sparse_bits(node.fields))


def sparse_entries(node, segments, children):
    """Row, column and value of each listed position that lies within the matrix."""
    d, values = node.fields, children[0]
    if d.layout == 3:
        cols = sparse_columns(node, segments)
        rows = np.broadcast_to(np.arange(node.rows)[:, None], cols.shape)
    else:
        block_rows, block_cols = sparse_blocks(node, segments)
        shape = len(block_rows), d.block_rows, d.block_cols
        rows = (block_rows * d.block_rows)[:, None, None] + np.arange(d.block_rows)[:, None]
        cols = (block_cols * d.block_cols)[:, None, None] + np.arange(d.block_cols)
        rows, cols = np.broadcast_to(rows, shape), np.broadcast_to(cols, shape)
        values = values.reshape(-1)[: rows.size].reshape(shape)
    inside = (rows < node.rows) & (cols < node.cols)
    return rows[inside], cols[inside], values[inside]


def sparse_values(node, segments, children):
    rows, cols, values = sparse_entries(node, segments, children)
    v = np.zeros((node.rows, node.cols), np.float32)
    v[rows, cols] = values
    return v


# low_rank


def low_rank_open(node, sizes):
    d = parse_descriptor(node, "<II", "rank reserved")
    rule(d.rank >= 1, "low_rank: rank 0")
    check_parts(node, sizes, [], [({d.rank}, {node.rows}), ({d.rank}, {node.cols})])


def low_rank_values(node, segments, children):
    a_t, b = children
    v = np.zeros((node.rows, node.cols), np.float32)
    at_once = max(2**16 // node.cols, 1)  # rows that stay in the cache
    for row in range(0, node.rows, at_once):
        for k in range(node.fields.rank):
            v[row : row + at_once] += a_t[k, row : row + at_once, None] * b[k]
    return v


# sign_low_rank


def sign_low_rank_open(node, sizes):
    d = parse_descriptor(node, "<II", "rank reserved")
    rule(d.rank >= 1, "sign_low_rank: rank 0")
    shapes = [({d.rank}, {node.rows}), ({d.rank}, {node.cols})]
    check_parts(node, sizes, [node.rows * stream_bytes(node.cols, 1)], shapes)


def sign_low_rank_payload(node, segments):
    check_tails(segments[0], node.rows, node.cols, 1)


def sign_low_rank_values(node, segments, children):
    v = low_rank_values(node, segments, children)
    return np.where(read_codes(segments[0], node.rows, node.cols, 1) == 1, v, -v)


# codebook


def codebook_open(node, sizes):
    fields = "codebooks bits has_scale reserved vector_rows vector_cols scale_cols"
    d = parse_descriptor(node, "<BBBBIII", fields)
    elements = d.vector_rows * d.vector_cols
    rule(d.codebooks >= 1 and 1 <= d.bits <= 16 and d.has_scale <= 1 and 1 <= elements <= 65536, d)
    rule(d.scale_cols % d.vector_cols == 0 and (d.has_scale or d.scale_cols == 0), d)
    down, across = ceil_div(node.rows, d.vector_rows), ceil_div(node.cols, d.vector_cols)
    scales = ceil_div(node.cols, d.scale_cols) if d.scale_cols else min(node.cols, 1)
    shapes = [({d.codebooks << d.bits}, {elements})] + [({down, 1}, {scales, 1})] * d.has_scale
    check_parts(node, sizes, [down * stream_bytes(across * d.codebooks, d.bits)], shapes)


def codebook_payload(node, segments):
    d = node.fields
    down, across = ceil_div(node.rows, d.vector_rows), ceil_div(node.cols, d.vector_cols)
    check_tails(segments[0], down, across * d.codebooks, d.bits)


def codebook_values(node, segments, children):
    d = node.fields
    down, across = ceil_div(node.rows, d.vector_rows), ceil_div(node.cols, d.vector_cols)
    codes = read_codes(segments[0], down, across * d.codebooks, d.bits).reshape(down, across, d.codebooks)
    entries = children[0].reshape(d.codebooks, 2**d.bits, d.vector_rows * d.vector_cols)
    v = entries[0][codes[:, :, 0]]
    for m in range(1, d.codebooks):
        v = v + entries[m][codes[:, :, m]]
    v = v.reshape(down, across, d.vector_rows, d.vector_cols).transpose(0, 2, 1, 3)
    v = v.reshape(down * d.vector_rows, across * d.vector_cols)[: node.rows, : node.cols]
    if d.has_scale:
        cols = np.arange(node.cols) // (d.scale_cols or node.cols)
        v = v * broadcast(children[1], np.arange(node.rows) // d.vector_rows, cols)
    return v


# lossless


def lossless_open(node, sizes):
    d = parse_descriptor(node, "<HHIQ", "dtype reserved rows_per_frame chunk_bytes")
    check(d.dtype in DTYPES, "unsupported", "lossless: dtype", d.dtype)
    rule(d.rows_per_frame == 1 or 1 < d.rows_per_frame and d.rows_per_frame * node.cols <= 2**24, d)
    rule(node.rows * node.cols * DTYPES[d.dtype][1] < 2**64, "lossless: elements overflow")
    check_parts(node, sizes, [lossless_frames(node) * DTYPES[d.dtype][1] * 8, d.chunk_bytes], [])


def lossless_frames(node):
    return ceil_div(node.rows, node.fields.rows_per_frame) if node.cols else 0


def lossless_bytes(node, segments):
    """The element bytes; every chunk is checked."""
    d, size, start, out = node.fields, DTYPES[node.fields.dtype][1], 0, []
    ends = np.frombuffer(segments[0], "<u8").tolist()
    check((ends[-1] if ends else 0) == d.chunk_bytes, "value", "lossless: last end")
    for frame in range(lossless_frames(node)):
        length = min(d.rows_per_frame, node.rows - frame * d.rows_per_frame) * node.cols
        planes = []
        for end in ends[frame * size : frame * size + size]:
            check(start <= end <= d.chunk_bytes, "value", "lossless: ends descend")
            chunk, start = segments[1][start:end], end
            if len(chunk) != length:
                check(len(chunk) < length <= 2**24, "value", "lossless: chunk of", len(chunk), "bytes")
                chunk = zstd_frame(chunk, length)
            planes.append(np.frombuffer(chunk, np.uint8))
        r = np.stack(planes, axis=1).view(f">u{size}").astype(f"<u{size}")
        one, last_bit = r.dtype.type(1), r.dtype.type(8 * size - 1)
        out.append(((r >> one) | (r << last_bit)).tobytes())
    return b"".join(out)


def lossless_values(node, segments, children):
    return elements_to_f32(lossless_bytes(node, segments), node.fields.dtype).reshape(node.rows, node.cols)


# trellis


def trellis_open(node, sizes):
    fields = "state_bits step_bits code axis path_elems multiplier addend scale_rows scale_cols reserved"
    d = parse_descriptor(node, "<BBBBIIIIIQ", fields)
    rule(6 <= d.state_bits <= 16 and 1 <= d.step_bits <= 4 and d.axis <= 1, d)
    check(d.code <= 1, "unsupported", d)
    rule(d.code == 1 or d.multiplier == d.addend == 0, d)
    down = ceil_div(node.rows, d.scale_rows) if d.scale_rows else min(node.rows, 1)
    across = ceil_div(node.cols, d.scale_cols) if d.scale_cols else min(node.cols, 1)
    shapes = [({down, 1}, {across, 1})] + [({1}, {2**d.state_bits})] * (d.code == 0)
    elems, lines = trellis_axis(node)
    whole, rest = divmod(elems, trellis_path(node)) if elems else (0, 0)
    words = whole * trellis_words(d, trellis_path(node)) + trellis_words(d, rest)
    check_parts(node, sizes, [words * lines * 4], shapes)


def trellis_axis(node):
    """Weights along the axis that paths run along, and how many such lines there are."""
    return (node.cols, node.rows) if node.fields.axis else (node.rows, node.cols)


def trellis_path(node):
    return node.fields.path_elems or trellis_axis(node)[0]


def trellis_words(d, elems):
    return ceil_div(elems * d.step_bits, 32)


def trellis_bits(node, segments):
    """For each path along the axis: its first weight, its weights, and all bits of its words [lines, bits]."""
    elems, lines = trellis_axis(node)
    words, first_word = np.frombuffer(segments[0], "<u4"), 0
    for start in range(0, elems if lines else 0, trellis_path(node) or 1):
        count = min(trellis_path(node), elems - start)
        end_word = first_word + trellis_words(node.fields, count)
        if node.fields.axis:
            own = words.reshape(lines, -1)[:, first_word:end_word]
        else:
            own = words[first_word * lines : end_word * lines].reshape(-1, lines).T
        bits = own[:, :, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)
        yield start, count, bits.reshape(lines, -1)
        first_word = end_word


def trellis_payload(node, segments):
    for _, count, bits in trellis_bits(node, segments):
        check(not bits[:, count * node.fields.step_bits :].any(), "value", "trellis: bits after a path")


def trellis_values(node, segments, children):
    d, windows = node.fields, np.zeros(trellis_axis(node)[::-1], np.uint64)
    for start, count, bits in trellis_bits(node, segments):
        ends = (np.arange(count) + 1) * d.step_bits
        for i in range(d.state_bits):
            ring = bits[:, (ends - d.state_bits + i) % (count * d.step_bits)].astype(np.uint64)
            windows[:, start : start + count] |= ring << np.uint64(i)
    windows = windows if d.axis else windows.T
    if d.code == 0:
        v = children[1][0][windows]
    else:
        x = windows * np.uint64(d.multiplier) + np.uint64(d.addend)
        total = sum(x >> np.uint64(8 * i) & np.uint64(255) for i in range(4))
        v = total.astype(np.float32) - np.float32(510)
    rows = np.arange(node.rows) // (d.scale_rows or node.rows)
    cols = np.arange(node.cols) // (d.scale_cols or node.cols)
    return v * broadcast(children[0], rows, cols)


# nested

NestedLevel = collections.namedtuple("NestedLevel", "bits map rounding group_cols")


def nested_levels(node):
    """This level and, where there is one, that below."""
    d = node.fields
    lower = NestedLevel(d.lower_bits, d.lower_map, d.lower_rounding, d.lower_group_cols)
    return [NestedLevel(d.bits, d.map, d.rounding, d.group_cols)] + [lower] * (d.lower_bits > 0)


def nested_open(node, sizes):
    fields = "bits map rounding lower_bits lower_map lower_rounding reserved group_cols lower_group_cols"
    d = parse_descriptor(node, "<BBBBBBHII", fields)
    rule(1 <= d.bits <= 8 and d.lower_bits < d.bits, d)
    rule(d.lower_bits or d.lower_map == d.lower_rounding == d.lower_group_cols == 0, d)
    shapes = []
    for level in nested_levels(node):
        check(level.map <= 1 and level.rounding <= 1, "unsupported", level)
        rule(level.map == 0 or level.group_cols == 0, level)
        across = ceil_div(node.cols, level.group_cols) if level.group_cols else min(node.cols, 1)
        integer, table = ({node.rows, 1}, {across, 1}), ({node.rows, 1}, {2**level.bits})
        shapes += [table] if level.map else [integer, integer]
    planes = d.bits + d.rounding
    rule(planes <= 8, d)
    check_parts(node, sizes, [node.rows * stream_bytes(node.cols, 1)] * planes, shapes)


def nested_payload(node, segments):
    for plane in segments:
        check_tails(plane, node.rows, node.cols, 1)


def nested_values(node, segments, children):
    planes = [read_codes(plane, node.rows, node.cols, 1) for plane in segments]
    children, rows, values = iter(children), np.arange(node.rows), []
    for level in nested_levels(node):
        code = sum(planes[p] << np.uint32(level.bits - 1 - p) for p in range(level.bits))
        if level.rounding:
            code = np.minimum(code + planes[level.bits], 2**level.bits - 1)
        if level.map:
            table = np.broadcast_to(next(children), (node.rows, 2**level.bits))
            values.append(np.take_along_axis(table, code, axis=1))
        else:
            cols = np.arange(node.cols) // (level.group_cols or node.cols)
            scale, zero = (broadcast(next(children), rows, cols) for _ in range(2))
            values.append((code.astype(np.float32) - zero) * scale)
    return values[0] - values[1] if len(values) == 2 else values[0]


ENCODINGS = {
    1: Encoding("dense", dense_open, None, dense_values),
    2: Encoding("grouped", grouped_open, grouped_payload, grouped_values),
    3: Encoding("sparse", sparse_open, sparse_payload, sparse_values),
    4: Encoding("low_rank", low_rank_open, None, low_rank_values),
    5: Encoding("codebook", codebook_open, codebook_payload, codebook_values),
    6: Encoding("lossless", lossless_open, lossless_bytes, lossless_values),
    7: Encoding("trellis", trellis_open, trellis_payload, trellis_values),
    8: Encoding("sign_low_rank", sign_low_rank_open, sign_low_rank_payload, sign_low_rank_values),
    9: Encoding("nested", nested_open, nested_payload, nested_values),
}


# --- transforms.md ---------------------------------------------------------------------------------

SCALE, SIGN_HADAMARD, PERMUTE = 1, 2, 3


def check_transform(archive, row, side):
    """Checks at open. What is not known matters only when a tensor is read."""
    node = archive.record("nodes", row.node) if row.node != NONE else None
    segment = archive.record("segments", row.segment) if row.segment != NONE else None
    rule(row.size == side, "transform of size", row.size, "on a side of", side)
    if row.kind not in (SCALE, SIGN_HADAMARD, PERMUTE) or row.flags & 0xFFFF:
        return
    if row.kind == SIGN_HADAMARD:
        rule(power_of_two(row.block, 1, row.size) and row.size % row.block == 0 and not node, row)
        rule(not segment or row.seed == 0, row)
        rule(not segment or segment.decoded_bytes == stream_bytes(row.size, 1), row)
    elif row.kind == SCALE:
        rule(row.block == row.seed == 0 and node and not segment, row)
        rule((node.rows, node.cols) == (1, row.size), row)
    else:
        rule(row.block == row.seed == 0 and segment and not node, row)
        rule(segment.decoded_bytes == 4 * row.size, row)


def transform_unknown(archive, row):
    """What is not known about the transform, or None."""
    if row.kind not in (SCALE, SIGN_HADAMARD, PERMUTE) or row.flags & 0xFFFF:
        return f"transform of kind {row.kind} flags {row.flags}"
    if row.node != NONE:
        return archive.nodes[row.node].unknown
    return archive.unreadable_segment(row.segment) if row.segment != NONE else None


def verify_transform(archive, row):
    """Checks on payload."""
    if not transform_unknown(archive, row) and row.segment != NONE:
        if row.kind == SIGN_HADAMARD:
            check_tails(archive.segment_bytes(row.segment), 1, row.size, 1)
        else:
            permutation(archive, row)


def permutation(archive, row):
    p = np.frombuffer(archive.segment_bytes(row.segment), "<u4").astype(np.int64)
    is_one = (p < row.size).all() and (np.bincount(p, minlength=row.size) == 1).all()
    check(is_one, "value", "permute: not a permutation")
    return p


def negative_signs(archive, row):
    if row.segment != NONE:
        return read_codes(archive.segment_bytes(row.segment), 1, row.size, 1)[0] == 1
    if row.seed == 0:
        return np.zeros(row.size, bool)
    k = np.arange(ceil_div(row.size, 64), dtype=np.uint64)
    z = np.uint64(row.seed) + (k + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words = (z ^ (z >> np.uint64(31))).astype("<u8")
    return np.unpackbits(words.view(np.uint8), bitorder="little")[: row.size] == 1


def hadamard(v, block):
    """On the rows of v [n, size]."""
    h = 1
    while h < block:
        pairs = v.reshape(-1, 2, h)
        v = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(v.shape)
        h *= 2
    return v * np.float32(1 / np.sqrt(np.float64(block)))


def on_output_side(archive, row, v):
    """What the transform does on the output side, on the rows of v [n, size]."""
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
        v = np.ascontiguousarray(on_output_side(archive, row, np.ascontiguousarray(v.T)).T)
    return v


# --- 8 Limits --------------------------------------------------------------------------------------

LIMITS = {
    "directory_bytes": 2**30,
    "records": 2**27,
    "decoded_segment_bytes": 2**30,
    "decoded_tensor_bytes": 2**32,
    "name_bytes": 4096,
    "rank": 16,
    "transforms": 16,
    "node_depth": 8,
    "node_tree": 256,
    "elements": 2**31,  # this reader's own: of an array that it makes (security.md, 3)
}


def within(limit, found):
    check(found <= LIMITS[limit], "limit", limit, "at most", LIMITS[limit], "found", found)


# --- Vectors: README.md says what their JSON holds -------------------------------------------------


def observe(archive, expected):
    """What the archive holds, in the form of the JSON of an accept file."""
    levels = {row["name"]: [level["level"] for level in row.get("levels", [])] for row in expected["tensors"]}
    return {
        "why": expected["why"],
        "identity": archive.identity.hex(),
        "tensors": [observe_tensor(archive, name, levels.get(name, [])) for name in archive.names],
        "attributes": [
            {"name": name, "media_type": media_type, "bytes": archive.attribute(name).hex()}
            for name, media_type in zip(archive.attribute_names, archive.media_types)
        ],
        "references": [
            {
                "name": name,
                "kind": ARCHIVES[row.kind],
                "identity": row.identity.hex(),
                "file_bytes": row.file_bytes,
            }
            for name, row in zip(archive.archive_names, archive.archives)
        ],
    }


def observe_tensor(archive, name, levels):
    tensor = archive.tensor(name)
    seen = {"name": name, "dtype": DTYPES[tensor.dtype][0], "shape": archive.shape(tensor)}
    if tensor.archive != NONE:
        kind = ARCHIVES[archive.archives[tensor.archive].kind]
        seen["reference"] = {"archive": archive.archive_names[tensor.archive], "kind": kind}
    seen["readable"] = error_kind(lambda: archive.readable_matrices(tensor)) != "unsupported"
    matrices = archive.matrices_of(tensor)
    if levels:
        seen["levels"] = [
            {
                "level": level,
                "left_out": sum(archive.matrix_terms(matrix, level)[1] for matrix in matrices),
                "values": [hexadecimal(row) for m in matrices for row in archive.matrix_values(m, level)],
            }
            for level in levels
        ]
    if seen["readable"] and (exact := archive.exact_bytes(name)) is not None:
        seen["elements"] = exact.hex()
    return seen


def hexadecimal(row):
    bits = np.ascontiguousarray(row).view(np.uint32)
    return " ".join("nan" if value != value else f"{word:08x}" for value, word in zip(row, bits))


def difference(expected, found, path=""):
    """The first place where two JSON values differ, or None."""
    if type(expected) is type(found) is dict and expected.keys() == found.keys():
        inner = [difference(expected[key], found[key], f"{path}.{key}") for key in expected]
    elif type(expected) is type(found) is list and len(expected) == len(found):
        inner = [difference(*pair, f"{path}[{index}]") for index, pair in enumerate(zip(expected, found))]
    elif expected == found:
        return None
    else:
        return f"{path}: expected {str(expected)[:200]}, found {str(found)[:200]}"
    return next(filter(None, inner), None)


def error_kind(action):
    """The kind of the error that the action ends in, or None."""
    try:
        action()
    except CmfError as error:
        return error.kind


def accept_problem(data, path, expected):
    archive = Archive(data, path)
    archive.verify()
    return difference(expected, observe(archive, expected))


def reject_problem(data, path, expected):
    stage, kind = "parse", error_kind(lambda: Archive(data, path))
    if kind is None and expected["fails_at"] != "parse":
        stage, archive = expected["fails_at"], Archive(data, path)
        if stage == "verify":
            kind = error_kind(archive.verify)
        elif "attribute" in expected:
            kind = error_kind(lambda: archive.attribute(expected["attribute"]))
        else:
            kind = error_kind(lambda: archive.tensor_values(expected["tensor"]))
    right = (stage, kind) == (expected["fails_at"], expected["kind"])
    return None if right else f"{stage} gives {kind}, not {expected['fails_at']} {expected['kind']}"


def run_vectors(folder):
    passed = failed = 0
    for half, find_problem in (("accept", accept_problem), ("reject", reject_problem)):
        for parent, _, files in sorted(os.walk(os.path.join(folder, half))):
            for path in sorted(os.path.join(parent, file) for file in files if file.endswith(".cmf")):
                try:
                    with open(path[:-4] + ".json", encoding="utf-8") as text:
                        problem = find_problem(map_file(path), path, json.load(text))
                except Exception as error:  # whatever it is, the vector has not passed
                    problem = f"{type(error).__name__} {error}"
                passed, failed = passed + (not problem), failed + bool(problem)
                if problem:
                    print(f"{path}: {problem}")
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


# --- Command line ----------------------------------------------------------------------------------


def map_file(path):
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def describe(node):
    """An encoding and those of its children, like `grouped bits 4 (dense f16, dense u8)`."""
    fields = node.fields._asdict() if node.unknown is None else {}
    names = "codebooks", "bits", "rank", "layout", "state_bits", "step_bits"
    shown = [f" {name} {fields[name]}" for name in names if name in fields]
    shown += [f" {DTYPES[fields['dtype']][0]}"] if "dtype" in fields else []
    children = ", ".join(map(describe, node.children))
    return node.name() + "".join(shown) + (f" ({children})" if children else "")


def list_archive(archive):
    for name, tensor in zip(archive.names, archive.tensors):
        terms = collections.Counter(
            describe(archive.nodes[term.node])
            for matrix in archive.matrices_of(tensor)
            for term in archive.terms[matrix.first_term : matrix.first_term + matrix.term_count]
        )
        parts = [f"{count} x {text}" if count > 1 else text for text, count in terms.items()]
        parts += [f"in {ascii(archive.archive_names[tensor.archive])}"] if tensor.archive != NONE else []
        print(ascii(name)[1:-1], DTYPES[tensor.dtype][0], archive.shape(tensor), " + ".join(parts), sep="\t")
    for name, media_type, row in zip(archive.attribute_names, archive.media_types, archive.attributes):
        size = archive.segments[row.segment].decoded_bytes
        print(f"attribute {ascii(name)[1:-1]}", media_type, f"{size} bytes", sep="\t")


def read_safetensors(path):
    """Name: (dtype, shape, bytes)."""
    data = memoryview(map_file(path))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:start]))
    header.pop("__metadata__", None)
    body = data[start:]
    return {
        name: (row["dtype"], row["shape"], body[slice(*row["data_offsets"])]) for name, row in header.items()
    }


def compare_tensor(archive, name, dtype, shape, data):
    """What differs, or None. Elements of another type than f32 are the exact bytes, or rounded (6.4)."""
    tensor = archive.tensor(name)
    number = next((number for number, row in DTYPES.items() if row[0].upper() == dtype), None)
    if archive.shape(tensor) != shape or number is None:
        return f"has shape {archive.shape(tensor)}, not {shape}, or unknown dtype {dtype}"
    exact = archive.exact_bytes(name) if number == tensor.dtype else None
    if exact is not None:
        return None if exact == data else "differs, though exact"
    values = archive.full_values(name)
    found = np.frombuffer(data, np.dtype(f"<u{DTYPES[number][1]}"))
    rounded = f32_to_elements(values, number).view(found.dtype)
    both_nan = np.isnan(values)
    if both_nan.any() and number in (1, 2, 3, 4, 5, 6, 7, 18, 19):
        both_nan &= np.isnan(elements_to_f32(data, number))
        rounded = np.where(both_nan, found, rounded)
    wrong = np.flatnonzero(rounded != found)
    return f"differs in {wrong.size} of {found.size} elements, first {wrong[0]}" if wrong.size else None


def compare(archive, safetensors):
    """Prints what differs; the number of tensors that do."""
    problems = {name: "is only in the .cmf" for name in set(archive.names) - set(safetensors)}
    for name, row in safetensors.items():
        known = name in archive.index
        problems[name] = compare_tensor(archive, name, *row) if known else "is not in the .cmf"
    problems = {name: problem for name, problem in sorted(problems.items()) if problem}
    for name, problem in problems.items():
        print(f"tensor {ascii(name)} {problem}")
    print(f"{len(archive.names)} tensors, {len(problems)} differ")
    return len(problems)


def main(arguments):
    parser = argparse.ArgumentParser(description="Reference reader of .cmf archives.")
    parser.add_argument("path", help="a .cmf file, or a folder of test vectors")
    parser.add_argument("safetensors", nargs="?", help="with --compare: what to compare with")
    parser.add_argument("--compare", action="store_true", help="compare with a safetensors file, bit for bit")
    parser.add_argument("--verify", action="store_true", help="check hashes, padding, sums and payload")
    parser.add_argument("--tensor", help="the tensor to decode")
    parser.add_argument("--out", help="the .npy file to write it to")
    options = parser.parse_args(arguments)
    if options.compare != (options.safetensors is not None) or bool(options.tensor) != bool(options.out):
        parser.error("--compare wants two files, --tensor wants --out")
    try:
        if os.path.isdir(options.path):
            return run_vectors(options.path)
        archive = Archive(map_file(options.path), options.path)
        if options.verify:
            archive.verify()
            print("verified", archive.identity.hex())
        if options.compare:
            return 1 if compare(archive, read_safetensors(options.safetensors)) else 0
        if options.tensor:
            shape = archive.shape(archive.tensor(options.tensor))
            np.save(options.out, archive.full_values(options.tensor).reshape(shape))
        elif not options.verify:
            list_archive(archive)
    except (CmfError, OSError) as error:
        print(f"{options.path}: {error}", file=sys.stderr)
        return 1 if isinstance(error, CmfError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
