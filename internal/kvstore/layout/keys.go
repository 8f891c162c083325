package layout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

// The store consists of these tables in the engine, each under a one-byte prefix:
//
//	a  kind, name            → users, roles, tokens; see package rights
//	b  kind, name, hash      → secrets of the rights, by their hash: backups lack them
//	c  revision [, part]     → the keys that revisions changed; see package changelog
//	h                        → progress of removing history, on this replica alone
//	i  principal, key        → idempotency records: what became of a request
//	k  lease, key            → nothing: the keys of each lease
//	l  lease                 → the leases
//	m                        → meta: position, revision, hash, counters
//	n                        → counters: ids and tokens, leases, locks
//	o  name                  → locks: the holder's token
//	p  lease, name           → the token of the ticket of each lease in each queue
//	q  name, end, token      → the tickets in the queues of locks
//	r  record key            → the records of the replication layer
//	s                        → the replicated settings
//	t  revision              → when it was current: samples of replicated time
//	v  key, end, ^revision   → a version of the key
//
// In table v the bytes of a key are escaped (00 becomes 00 FF) and terminated by
// 00 01. This keeps the order of keys and separates a key from its continuations:
// without a terminator, the versions of "a" (whose inverted revisions begin with FF)
// would lie among those of the key "a" FF. The revision follows inverted, so that
// the newest version comes first and a point read at any revision is one seek.
const (
	TableRights      = 'a'
	TableSecret      = 'b'
	TableChange      = 'c'
	TableHistory     = 'h'
	TableIdempotency = 'i'
	TableLeaseKey    = 'k'
	TableLease       = 'l'
	TableMeta        = 'm'
	TableCounts      = 'n'
	TableLock        = 'o'
	TableLeaseLock   = 'p'
	TableTicket      = 'q'
	TableRecord      = 'r'
	TableSetting     = 's'
	TableTime        = 't'
	TableVersion     = 'v'
)

// rowTables are the replicated tables whose records are rows.
const rowTables = string(TableRights) + string(TableSecret) + string(TableIdempotency) + string(TableLeaseKey) + string(TableLease) + string(TableCounts) + string(TableLock) + string(TableLeaseLock) + string(TableTicket)

// IsRowTable reports whether the records of a table are rows.
func IsRowTable(table byte) bool { return strings.IndexByte(rowTables, table) >= 0 }

const (
	escapeByte  = 0x00
	escapedZero = 0xFF
	keyEnd      = 0x01
	afterKeyEnd = 0x02 // after every version of the key, before any greater key
	RevisionLen = 8
)

// comparerName is the version of the key format. Pebble refuses to open a directory
// that was written with a comparer of another name.
const comparerName = "kvd.keys.v2"

// ErrMalformed is wrapped without the key, because it may be logged, and keys never
// are.
var ErrMalformed = errors.New("engine key is malformed")

// Comparer orders the store's keys for Pebble: by their bytes, with everything but
// the revision of a version as the prefix. Bloom filters are about prefixes, so a
// lookup of a key can skip a file whatever revision it asks for.
func Comparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = comparerName
	c.Split = splitVersion
	// Pebble shortens the separators of blocks. One that ended within a revision
	// would not split at all, and sort as a prefix of its own among the versions
	// of the key. Whole keys cost a few bytes per block.
	c.Separator = func(dst, a, _ []byte) []byte { return append(dst, a...) }
	c.Successor = func(dst, a []byte) []byte { return append(dst, a...) }
	c.ImmediateSuccessor = func(dst, prefix []byte) []byte {
		if n := len(prefix); n > 2 && prefix[0] == TableVersion && prefix[n-2] == escapeByte && prefix[n-1] == keyEnd {
			return AfterPrefix(dst, prefix)
		}
		return append(append(dst, prefix...), 0)
	}
	return &c
}

// splitVersion returns the length of the prefix of an engine key: all but the
// revision of a version, and all of any other key.
func splitVersion(k []byte) int {
	n := len(k) - RevisionLen
	if n < 3 || k[0] != TableVersion || k[n-1] != keyEnd || k[n-2] != escapeByte {
		return len(k)
	}
	return n
}

// appendKeyPrefix appends the prefix that all versions of key have.
func appendKeyPrefix(dst, key []byte) []byte {
	return AppendTerminated(append(dst, TableVersion), key)
}

// AppendTerminated appends a key escaped and with its end, after which others can follow.
func AppendTerminated(dst, key []byte) []byte {
	return append(AppendEscaped(dst, key), escapeByte, keyEnd)
}

// AppendEscaped appends a key escaped, but without its end.
func AppendEscaped(dst, key []byte) []byte {
	for {
		i := bytes.IndexByte(key, escapeByte)
		if i < 0 {
			return append(dst, key...)
		}
		dst = append(dst, key[:i]...)
		dst = append(dst, escapeByte, escapedZero)
		key = key[i+1:]
	}
}

// AppendVersionKey appends the engine key of the version that a revision gave a key.
func AppendVersionKey(dst, key []byte, revision uint64) []byte {
	return binary.BigEndian.AppendUint64(appendKeyPrefix(dst, key), ^revision)
}

// SplitVersionKey returns the prefix and the revision of a key in table v.
func SplitVersionKey(k []byte) (prefix []byte, revision uint64, err error) {
	n := len(k) - RevisionLen
	if n < 3 || k[0] != TableVersion || k[n-2] != escapeByte || k[n-1] != keyEnd {
		return nil, 0, fmt.Errorf("%w: version key of %d bytes", ErrMalformed, len(k))
	}
	return k[:n], ^binary.BigEndian.Uint64(k[n:]), nil
}

// CheckVersionKey refuses a key in table v that AppendVersionKey does not produce.
// It is for keys from outside, in a body: everything else that reads such keys
// relies on them being well-formed.
func CheckVersionKey(k []byte) error {
	prefix, _, err := SplitVersionKey(k)
	if err != nil {
		return err
	}
	for escaped := prefix[1 : len(prefix)-2]; ; {
		i := bytes.IndexByte(escaped, escapeByte)
		switch {
		case i < 0:
			return nil
		case i+1 == len(escaped) || escaped[i+1] != escapedZero:
			return fmt.Errorf("%w: version key of %d bytes", ErrMalformed, len(k))
		}
		escaped = escaped[i+2:]
	}
}

// UnescapePrefix appends the key that a prefix in table v stands for.
func UnescapePrefix(dst, prefix []byte) []byte {
	escaped := prefix[1 : len(prefix)-2]
	for {
		i := bytes.IndexByte(escaped, escapeByte)
		if i < 0 {
			return append(dst, escaped...)
		}
		dst = append(dst, escaped[:i+1]...)
		escaped = escaped[i+2:]
	}
}

// PointBounds returns the bounds of the versions of a key from revision down. Both
// have the prefix of the key, which lets the engine use its filters.
//
// Both share the memory of dst, in one allocation; lower has the capacity of both,
// for the next call.
func PointBounds(dst []byte, key []byte, revision uint64) (lower, upper []byte) {
	lower = AppendVersionKey(dst[:0], key, revision)
	n := len(lower)
	both := append(lower, lower...)
	SetRevision(both, 0) // no version has revision 0, so none is lost at the open end
	return both[:n], both[n:]
}

// PointBoundsLen is the capacity that PointBounds needs for a key without zero bytes.
func PointBoundsLen(key []byte) int { return 2 * (len(key) + 3 + RevisionLen) }

// SetRevision replaces the revision at the end of a key in table v.
func SetRevision(k []byte, revision uint64) {
	binary.BigEndian.PutUint64(k[len(k)-RevisionLen:], ^revision)
}

// VersionBounds returns the bounds of the versions of all keys in [start, end). A
// nil end is open.
func VersionBounds(start, end []byte) (lower, upper []byte) {
	lower = appendKeyPrefix(nil, start)
	if end == nil {
		return lower, []byte{TableVersion + 1}
	}
	return lower, appendKeyPrefix(nil, end)
}

// AfterPrefix appends the first engine key after all versions with the prefix.
func AfterPrefix(dst, prefix []byte) []byte {
	dst = append(dst, prefix...)
	dst[len(dst)-1] = afterKeyEnd
	return dst
}

// TimeKey returns the engine key of the sample of a revision.
func TimeKey(revision uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{TableTime}, revision)
}

// RecordKey appends the engine key of a record of the replication layer.
func RecordKey[K string | []byte](dst []byte, key K) []byte {
	return append(append(dst, TableRecord), key...)
}
