package kvstore

import (
	"encoding/binary"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// The change log, table c, says which keys each revision changed, in the order of the
// operations. Compaction finds in it what it makes superfluous, and watches read it.
// The values are in table v.
//
// All changes of one call of Apply share a record. A record for each revision cost as much
// as the versions themselves on the way through memtable, flush and compaction. So where
// a record begins depends on the calls of this replica; the log as a whole does not.
//
//	c  first revision [, part]  → version, {Δrevision, n, {change} × n} …
//	change:                       flags, shared, suffix, [revision − previous, stored bytes before]
//
// A key is written as what it does not share with the one before it in the record. A
// record has several whole revisions, or one part of a revision that does not fit into
// maxChangeBytes; parts after the first have their number in the key. Therefore revision R is
// in the last record whose key is below R+1, or in the first part of that revision.

// maxChangeBytes bounds a record. A range delete of 100,000 keys would otherwise make a
// single one of 400 MB, which Maintain would have to process in one step.
const maxChangeBytes = 64 << 10

// The flags of a change in the log.
const (
	changeDeleted  = 1 << 0
	changeReplaced = 1 << 1 // the key existed before
	knownChange    = changeDeleted | changeReplaced
)

// loggedChange is a change as the log has it.
type loggedChange struct {
	key     []byte
	deleted bool
	// previous is the revision of the version that the change replaced, which takes
	// stored bytes in the engine; 0 if the key was absent.
	previous uint64
	stored   int64
}

// changeBytes bounds what a change with a key takes in the log.
func changeBytes(key string) int { return len(key) + 24 }

// changeLogger collects changes for records of the log.
type changeLogger struct {
	set func(key, value []byte)

	value []byte // the record being built, or empty
	// first and last are the revisions that the record begins with and has come to, and
	// part is its number among those of a divided revision.
	first, last uint64
	part        uint32
	lastKey     string
	engineKey   []byte
}

// log adds the changes of a revision, in the order of the operations.
func (l *changeLogger) log(revision uint64, changes []change) {
	size := 0
	for i := range changes {
		size += changeBytes(changes[i].meta.key)
	}
	if len(l.value)+size > maxChangeBytes {
		l.flush()
	}
	if size > maxChangeBytes {
		l.divide(revision, changes)
		return
	}
	l.group(revision, changes)
}

// divide gives each part of a large revision a record of its own.
func (l *changeLogger) divide(revision uint64, changes []change) {
	for part := uint32(0); len(changes) > 0; part++ {
		n, size := 0, 0
		for n < len(changes) && size < maxChangeBytes {
			size += changeBytes(changes[n].meta.key)
			n++
		}
		l.group(revision, changes[:n])
		l.part = part
		l.flush()
		changes = changes[n:]
	}
}

func (l *changeLogger) group(revision uint64, changes []change) {
	if len(l.value) == 0 {
		l.value = append(l.value, recordVersion)
		l.first, l.last, l.lastKey = revision, revision, ""
	}
	l.value = binary.AppendUvarint(l.value, revision-l.last)
	l.value = binary.AppendUvarint(l.value, uint64(len(changes)))
	l.last = revision
	for i := range changes {
		l.change(&changes[i])
	}
}

func (l *changeLogger) change(c *change) {
	var flags byte
	if !c.exists {
		flags |= changeDeleted
	}
	if c.replaced.stored > 0 {
		flags |= changeReplaced
	}
	key := c.meta.key
	shared := sharedPrefix(l.lastKey, key)
	l.lastKey = key
	l.value = binary.AppendUvarint(append(l.value, flags), uint64(shared))
	l.value = wire.AppendBytes(l.value, key[shared:])
	if flags&changeReplaced != 0 {
		l.value = binary.AppendUvarint(l.value, c.mod-c.replaced.mod)
		l.value = binary.AppendUvarint(l.value, uint64(c.replaced.stored))
	}
}

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// flush ends the record.
func (l *changeLogger) flush() {
	if len(l.value) == 0 {
		return
	}
	l.engineKey = changeKey(l.engineKey[:0], l.first, l.part)
	l.set(l.engineKey, l.value)
	l.value, l.part = l.value[:0], 0
}

// changeKey returns the key of a record. The first part of a revision has no number,
// like a record of whole revisions.
func changeKey(dst []byte, revision uint64, part uint32) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, tableChange), revision)
	if part == 0 {
		return dst
	}
	return binary.BigEndian.AppendUint32(dst, part)
}

// splitChangeKey returns the place of a key in table c.
func splitChangeKey(k []byte) (place, error) {
	var part uint32
	if len(k) == changeKeyLen+4 {
		part = binary.BigEndian.Uint32(k[changeKeyLen:])
	}
	if len(k) != changeKeyLen && part == 0 {
		return place{}, fmt.Errorf("%w: change key of %d bytes", errLayout, len(k))
	}
	return place{binary.BigEndian.Uint64(k[1:]), part}, nil
}

const changeKeyLen = 1 + revisionLen

// changeReader reads a record of the log.
type changeReader struct {
	d        wire.Decoder
	revision uint64 // of the current change
	change   loggedChange
	left     uint64 // changes of the revision after the current one
	started  bool
	key      []byte
	err      error
}

// readChanges begins to read a record. The first call of next moves to its first change.
func readChanges(first uint64, value []byte) *changeReader {
	d, err := openRecord("change", value)
	return &changeReader{d: d, revision: first, err: err}
}

// next moves to the next change. It returns false at the end and after an error. The
// change is valid until the next call.
func (r *changeReader) next() bool {
	if r.err != nil || len(r.d.B) == 0 {
		return false
	}
	if r.left == 0 {
		r.nextRevision()
	}
	r.left--
	r.decode()
	if r.d.Failed {
		r.err = fmt.Errorf("%w: change record", errLayout)
	} else if len(r.d.B) == 0 && r.left > 0 {
		r.err = fmt.Errorf("%w: change record ends within a revision", errLayout)
	}
	return r.err == nil
}

func (r *changeReader) nextRevision() {
	step := r.d.Uvarint()
	r.left = r.d.Uvarint()
	r.d.FailIf(r.left == 0 || (step == 0) == r.started || r.revision+step < r.revision)
	r.revision += step
	r.started = true
	r.left = max(r.left, 1)
}

func (r *changeReader) decode() {
	d, c := &r.d, &r.change
	flags := d.Bits(knownChange)
	shared := d.Uvarint()
	suffix := d.Bytes()
	if shared > uint64(len(r.key)) {
		d.Fail()
		return
	}
	r.key = append(r.key[:shared], suffix...)
	*c = loggedChange{key: r.key, deleted: flags&changeDeleted != 0}
	if flags&changeReplaced != 0 {
		back, stored := d.Uvarint(), d.Uvarint()
		d.FailIf(back == 0 || back >= r.revision || stored == 0 || stored > maxStoredBytes)
		c.previous, c.stored = r.revision-back, int64(stored)
	}
	d.FailIf(len(r.key) == 0 || len(r.key) > MaxKeyBytes || c.deleted && c.previous == 0)
}

// maxStoredBytes is more than any version takes in the engine.
const maxStoredBytes = 1 << 31

// checkChanges refuses a record that this package would not have written. It is for
// records from outside, in a body. It returns the last revision in it.
func checkChanges(key, value []byte) (last uint64, err error) {
	at, err := splitChangeKey(key)
	if err != nil {
		return 0, err
	}
	return lastChange(at.revision, value)
}

// logChanges adds the changes of the current call to the writes.
func (x *executor) logChanges() {
	for from := 0; from < len(x.changes); {
		until := from + 1
		for until < len(x.changes) && x.changes[until].mod == x.changes[from].mod {
			until++
		}
		x.log.log(x.changes[from].mod, x.changes[from:until])
		from = until
	}
	x.log.flush()
}
