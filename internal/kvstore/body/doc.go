// Package body is the container of snapshot bodies: named sections of records, each with
// a version and a checksum, in compressed blocks. It knows nothing of what the records
// mean; package kvstore writes and judges them.
//
// # Format
//
//	head        "kvd body", format version
//	sections    'S', section version, length of the name, name; blocks; records,
//	            xxHash64 of the section's records
//	trailer     'E', records, index, term, revision, compact revision, state hash, and the
//	            xxHash64 of these
//	block       compressed size, size, xxHash64 of the compressed bytes, bytes
//	            (zstd; inside: key size, key, value size, value, …); a block of size 0
//	            ends the section
//
// Numbers have 8 bytes, little-endian; sizes inside a block, and that of a name, are
// varints. The keys of a section ascend. Writing and reading need the memory of one block,
// however large the state is.
//
// The counts and hashes are in a trailer and not in the head, so that a body can be
// written in one pass. The trailer also makes truncation detectable: a body that was cut
// at the boundary of a block or a section lacks it.
//
// The checksum of a section is over what the blocks contain, not over the compressed
// bytes: two bodies of equal states can be compared section by section, whatever
// compressor wrote them (Section.Checksum).
package body
