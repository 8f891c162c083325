package changelog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
	"github.com/kvd-io/kvd/internal/limits"
)

// MaxBytes bounds a record. A range delete of 100,000 keys would otherwise make a
// single one of 400 MB, which Maintain would have to process in one step.
const MaxBytes = 64 << 10

// recordVersion is the first byte of every record.
const recordVersion = 1

// ErrMalformed is wrapped by the errors about a record that a Logger does not write.
var ErrMalformed = errors.New("change record is malformed")

// The flags of a change in the log.
const (
	changeDeleted  = 1 << 0
	changeReplaced = 1 << 1 // the key existed before
	knownChange    = changeDeleted | changeReplaced
)

// Change is a change as the log has it.
type Change struct {
	Key     []byte
	Deleted bool
	// previous is the revision of the version that the change replaced, which takes
	// stored bytes in the engine; 0 if the key was absent.
	Previous uint64
	Stored   int64
}

// MaxBytes bounds what the change takes in the log.
func (c *Change) MaxBytes() int { return len(c.Key) + 24 }

// Logger collects changes for records of the log.
type Logger struct {
	// Set gets each finished record: the revision and the part that its key has.
	Set func(revision uint64, part uint32, value []byte)

	value []byte // the record being built, or empty
	// first and last are the revisions that the record begins with and has come to, and
	// part is its number among those of a divided revision.
	first, last uint64
	part        uint32
	lastKey     []byte
	change      Change // scratch
}

// Revision is the changes of a revision, in the order of the operations: how many there
// are, and a function that sets c to the one at i.
type Revision struct {
	N  int
	At func(i int, c *Change)
}

// Log adds the changes of a revision.
func (l *Logger) Log(revision uint64, changes Revision) {
	size := 0
	for i := 0; i < changes.N && size < MaxBytes; i++ {
		changes.At(i, &l.change)
		size += l.change.MaxBytes()
	}
	if len(l.value)+size > MaxBytes {
		l.Flush()
	}
	if size >= MaxBytes {
		l.divide(revision, changes)
		return
	}
	l.group(revision, changes, 0, changes.N)
}

// divide gives each part of a large revision a record of its own. Where it cuts depends on
// the keys alone, so the parts are the same on every replica, and a part other than the
// last is at least of the size from which on a revision is divided.
func (l *Logger) divide(revision uint64, changes Revision) {
	part := uint32(0)
	for from := 0; from < changes.N; part++ {
		until, size := from, 0
		for until < changes.N && size < MaxBytes {
			changes.At(until, &l.change)
			size += l.change.MaxBytes()
			until++
		}
		l.group(revision, changes, from, until)
		l.part = part
		l.Flush()
		from = until
	}
}

// LogPart adds one part of a divided revision, as it is.
func (l *Logger) LogPart(revision uint64, part uint32, changes Revision) {
	l.Flush()
	l.group(revision, changes, 0, changes.N)
	l.part = part
	l.Flush()
}

func (l *Logger) group(revision uint64, changes Revision, from, until int) {
	if len(l.value) == 0 {
		l.value = append(l.value, recordVersion)
		l.first, l.last, l.lastKey = revision, revision, l.lastKey[:0]
	}
	l.value = binary.AppendUvarint(l.value, revision-l.last)
	l.value = binary.AppendUvarint(l.value, uint64(until-from))
	l.last = revision
	for i := from; i < until; i++ {
		changes.At(i, &l.change)
		l.add(revision, &l.change)
	}
}

func (l *Logger) add(revision uint64, c *Change) {
	var flags byte
	if c.Deleted {
		flags |= changeDeleted
	}
	if c.Previous != 0 {
		flags |= changeReplaced
	}
	shared := sharedPrefix(l.lastKey, c.Key)
	l.lastKey = append(l.lastKey[:shared], c.Key[shared:]...)
	l.value = binary.AppendUvarint(append(l.value, flags), uint64(shared))
	l.value = wire.AppendBytes(l.value, c.Key[shared:])
	if flags&changeReplaced != 0 {
		l.value = binary.AppendUvarint(l.value, revision-c.Previous)
		l.value = binary.AppendUvarint(l.value, uint64(c.Stored))
	}
}

func sharedPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// Flush ends the record.
func (l *Logger) Flush() {
	if len(l.value) == 0 {
		return
	}
	l.Set(l.first, l.part, l.value)
	l.value, l.part = l.value[:0], 0
}

// Reader reads a record of the log.
type Reader struct {
	d        wire.Decoder
	Revision uint64 // of the current change
	Change   Change
	Left     uint64 // changes of the revision after the current one
	started  bool
	key      []byte
	Err      error
}

// Read begins to read a record. The first call of Next moves to its first change.
func Read(first uint64, value []byte) *Reader {
	r := &Reader{d: wire.Decoder{B: value}, Revision: first}
	if version := r.d.Byte(); version != recordVersion && !r.d.Failed {
		r.Err = &wire.UnknownVersionError{What: "change record", Version: version}
	} else if len(r.d.B) == 0 {
		r.Err = fmt.Errorf("%w: empty record", ErrMalformed)
	}
	return r
}

// Next moves to the next change. It returns false at the end and after an error. The
// change is valid until the next call.
func (r *Reader) Next() bool {
	if r.Err != nil || len(r.d.B) == 0 {
		return false
	}
	if r.Left == 0 {
		r.nextRevision()
	}
	r.Left--
	r.decode()
	if r.d.Failed {
		r.Err = fmt.Errorf("%w: revision %d", ErrMalformed, r.Revision)
	} else if len(r.d.B) == 0 && r.Left > 0 {
		r.Err = fmt.Errorf("%w: it ends within revision %d", ErrMalformed, r.Revision)
	}
	return r.Err == nil
}

func (r *Reader) nextRevision() {
	step := r.d.Uvarint()
	r.Left = r.d.Uvarint()
	r.d.FailIf(r.Left == 0 || (step == 0) == r.started || r.Revision+step < r.Revision)
	r.Revision += step
	r.started = true
	r.Left = max(r.Left, 1)
}

func (r *Reader) decode() {
	d, c := &r.d, &r.Change
	flags := d.Bits(knownChange)
	shared := d.Uvarint()
	suffix := d.Bytes()
	if shared > uint64(len(r.key)) {
		d.Fail()
		return
	}
	r.key = append(r.key[:shared], suffix...)
	*c = Change{Key: r.key, Deleted: flags&changeDeleted != 0}
	if flags&changeReplaced != 0 {
		back, stored := d.Uvarint(), d.Uvarint()
		d.FailIf(back == 0 || back >= r.Revision || stored == 0 || stored > maxStoredBytes)
		c.Previous, c.Stored = r.Revision-back, int64(stored)
	}
	d.FailIf(len(r.key) == 0 || len(r.key) > limits.MaxKeyBytes)
}

// maxStoredBytes is more than any version takes in the engine.
const maxStoredBytes = 1 << 31

// Last returns the last revision in a record.
func Last(first uint64, value []byte) (uint64, error) {
	r := Read(first, value)
	for r.Next() {
		continue
	}
	return r.Revision, r.Err
}
