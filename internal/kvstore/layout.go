package kvstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// The store lies in the engine as these tables, each under a one-byte prefix:
//
//	c  revision, part        → the keys that the revision changed
//	h                        → progress of the removal of history (of this replica alone)
//	m                        → meta: position, revision, hash, counters
//	r  record key            → raftnode's records
//	s                        → the replicated settings
//	t  revision              → when it was current: samples of replicated time
//	v  key, end, ^revision   → a version of the key
//
// In table v a key's bytes are escaped (00 becomes 00 FF) and ended by 00 01,
// which keeps the order of keys and separates a key from its continuations.
// The revision follows inverted, so that the newest version comes first: a
// point read at any revision is one seek. There is no second table for the
// newest values; it would double what a put writes and save a put nothing,
// because Apply finds the metadata of the key in its cache.
const (
	tableMutation = 'c'
	tableHistory  = 'h'
	tableMeta     = 'm'
	tableRecord   = 'r'
	tableSetting  = 's'
	tableTime     = 't'
	tableVersion  = 'v'
)

const (
	escapeByte  = 0x00
	escapedZero = 0xFF
	keyEnd      = 0x01
	afterKeyEnd = 0x02 // greater than every version of the key, less than any other key
	revisionLen = 8

	mutationKeyLen = 1 + revisionLen + 4
)

// comparerName is the version of the key format: Pebble refuses to open a
// directory written under another name.
const comparerName = "kvd.keys.v1"

// errLayout goes to the log, and so never with the key.
var errLayout = errors.New("engine key is malformed")

// Comparer orders the store's keys for Pebble: by their bytes, with the
// revision of a version outside of the prefix, so that the filters know keys
// and not versions.
func Comparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = comparerName
	c.Split = splitVersion
	// A separator that ended within a revision would have no prefix that the
	// order by prefixes knows: keys are kept whole.
	c.Separator = func(dst, a, _ []byte) []byte { return append(dst, a...) }
	c.Successor = func(dst, a []byte) []byte { return append(dst, a...) }
	c.ImmediateSuccessor = func(dst, prefix []byte) []byte {
		if n := len(prefix); n > 2 && prefix[0] == tableVersion && prefix[n-2] == escapeByte && prefix[n-1] == keyEnd {
			return afterPrefix(dst, prefix)
		}
		return append(append(dst, prefix...), 0)
	}
	return &c
}

// splitVersion is the length of an engine key's prefix: all but the revision.
func splitVersion(k []byte) int {
	n := len(k) - revisionLen
	if n < 3 || k[0] != tableVersion || k[n-1] != keyEnd || k[n-2] != escapeByte {
		return len(k)
	}
	return n
}

// appendKeyPrefix appends the prefix under which all versions of key lie.
func appendKeyPrefix(dst, key []byte) []byte {
	dst = append(dst, tableVersion)
	dst = appendEscaped(dst, key)
	return append(dst, escapeByte, keyEnd)
}

func appendEscaped(dst, key []byte) []byte {
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

func appendVersionKey(dst, key []byte, revision uint64) []byte {
	return binary.BigEndian.AppendUint64(appendKeyPrefix(dst, key), ^revision)
}

// splitVersionKey returns the prefix and the revision of a key of table v.
func splitVersionKey(k []byte) (prefix []byte, revision uint64, err error) {
	n := len(k) - revisionLen
	if n < 3 || k[0] != tableVersion || k[n-2] != escapeByte || k[n-1] != keyEnd {
		return nil, 0, fmt.Errorf("%w: a version of %d bytes", errLayout, len(k))
	}
	return k[:n], ^binary.BigEndian.Uint64(k[n:]), nil
}

// checkVersionKey refuses a key of table v that no key and revision encode to:
// the other readers of such keys rely on that.
func checkVersionKey(k []byte) error {
	prefix, _, err := splitVersionKey(k)
	if err != nil {
		return err
	}
	for escaped := prefix[1 : len(prefix)-2]; ; {
		i := bytes.IndexByte(escaped, escapeByte)
		switch {
		case i < 0:
			return nil
		case i+1 == len(escaped) || escaped[i+1] != escapedZero:
			return fmt.Errorf("%w: a version of %d bytes", errLayout, len(k))
		}
		escaped = escaped[i+2:]
	}
}

// unescapePrefix appends the key that a prefix of table v stands for.
func unescapePrefix(dst, prefix []byte) []byte {
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

// pointBounds returns the engine keys between which the versions of one key
// from revision down lie. Both have the key's prefix, so that the engine can
// use its filters.
//
// They share dst's memory; lower has the capacity of both, for the next call.
func pointBounds(dst []byte, key []byte, revision uint64) (lower, upper []byte) {
	lower = appendVersionKey(dst[:0], key, revision)
	n := len(lower)
	both := append(lower, lower...)
	setRevision(both, 0) // there is none
	return both[:n], both[n:]
}

// pointBoundsLen is the room that pointBounds needs for a key without zeros.
func pointBoundsLen(key []byte) int { return 2 * (len(key) + 3 + revisionLen) }

// setRevision replaces the revision at the end of a key of table v.
func setRevision(k []byte, revision uint64) {
	binary.BigEndian.PutUint64(k[len(k)-revisionLen:], ^revision)
}

// versionBounds returns the engine keys between which the versions of all keys
// in [start, end) lie; a nil end is open.
func versionBounds(start, end []byte) (lower, upper []byte) {
	lower = appendKeyPrefix(nil, start)
	if end == nil {
		return lower, []byte{tableVersion + 1}
	}
	return lower, appendKeyPrefix(nil, end)
}

// afterPrefix turns a prefix into the first engine key after all its versions.
func afterPrefix(dst, prefix []byte) []byte {
	dst = append(dst, prefix...)
	dst[len(dst)-1] = afterKeyEnd
	return dst
}

func timeKey(revision uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{tableTime}, revision)
}

func recordKey(dst, key []byte) []byte { return append(append(dst, tableRecord), key...) }
