package once

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// overheadBytes is what a record counts besides its row: the row's key once more, and the
// index.
const overheadBytes = 160

// MaxAgedRecords bounds the records that one tick forgets. The leader ticks again at
// once while more are left.
const MaxAgedRecords = 10_000

// Index is what a store knows about the records without asking the engine. It belongs to
// the goroutine that applies.
type Index struct {
	eng     engine.Engine
	hasher  statehash.Hasher
	scratch []byte            // an engine key being built
	records map[string]*entry // by row key without the table
	queue   []*entry          // by clock; released ones stay until their turn
	bytes   int64
	// replayed counts the repeats that were answered. It belongs to this replica.
	replayed uint64
	// unsettled are the records whose rows are not in the engine yet.
	unsettled []*entry
}

// entry is a record in the index.
type entry struct {
	key      string
	place    Place
	clock    int64
	bytes    int64
	hash     uint64 // the term of the record in the state hash
	value    []byte // of the row, until it is in the engine
	released bool
}

// Place is the place of a command in the log. The queue is in its order, on a
// replica that restarted as well: if a tick can forget only some of the records of
// one clock, all replicas must choose the same ones.
type Place struct {
	Index   uint64 // of the entry
	Command uint64 // position in the entry
}

func (p Place) compare(q Place) int {
	return cmp.Or(cmp.Compare(p.Index, q.Index), cmp.Compare(p.Command, q.Command))
}

// Remembered are figures about the results that are kept for repeated commands.
type Remembered struct {
	Records int
	Bytes   int64  // with the index in memory; Settings.IdempotencyBytes is the limit
	Replays uint64 // repeats that were answered, since the store was opened
}

// Stats returns the figures of the index.
func (ix *Index) Stats() Remembered {
	return Remembered{Records: len(ix.records), Bytes: ix.bytes, Replays: ix.replayed}
}

func (ix *Index) add(e *entry) {
	ix.records[e.key] = e
	ix.queue = append(ix.queue, e)
	ix.bytes += e.bytes
}

// remove forgets a record. Its place in the queue is given up when its turn comes, or
// when most of the queue consists of such places.
func (ix *Index) remove(e *entry) {
	delete(ix.records, e.key)
	ix.bytes -= e.bytes
	e.released = true
	if len(ix.queue) > 2*len(ix.records)+1024 {
		ix.queue = slices.DeleteFunc(ix.queue, func(e *entry) bool { return e.released })
	}
}

// Settle notes that all rows are in the engine.
func (ix *Index) Settle() {
	for _, e := range ix.unsettled {
		e.value = nil
	}
	clear(ix.unsettled)
	ix.unsettled = ix.unsettled[:0]
}

// oldest returns the record whose turn it is, or nil.
func (ix *Index) oldest() *entry {
	for len(ix.queue) > 0 && ix.queue[0].released {
		ix.queue = ix.queue[1:]
	}
	if len(ix.queue) == 0 {
		return nil
	}
	return ix.queue[0]
}

// keyOf returns the key of a record. The length keeps principal and key apart: nobody can name another principal's record.
func keyOf(principal, key string) string {
	return string(wire.AppendBytes(nil, principal)) + key
}

// appendRecord appends a record: when it was made, by which command, for which
// request, and its result.
func appendRecord(dst []byte, clock int64, place Place, fingerprint [16]byte, r *command.Result) []byte {
	dst = binary.AppendVarint(append(dst, layout.RecordVersion), clock)
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, place.Index), place.Command)
	return command.AppendResult(append(dst, fingerprint[:]...), r)
}

// record is a decoded record, whose result is decoded only if it is needed.
type record struct {
	clock       int64
	place       Place
	fingerprint [16]byte
	result      []byte
}

func decodeRecord(b []byte) (record, error) {
	d, err := layout.OpenRecord("idempotency", b)
	if err != nil {
		return record{}, err
	}
	r := record{clock: d.Varint(), place: Place{Index: d.Uvarint(), Command: d.Uvarint()}}
	copy(r.fingerprint[:], d.Take(16))
	r.result = d.Rest()
	if d.Failed {
		return record{}, fmt.Errorf("%w: idempotency record", layout.ErrMalformed)
	}
	return r, nil
}

// CheckRow refuses a row that this package would not have written. It is for rows from
// outside, in a body.
func CheckRow(key, value []byte) error {
	d := wire.Decoder{B: key}
	d.Bytes()
	if n := len(d.B); d.Failed || n < 1 || n > command.MaxIdempotencyKeyBytes {
		return fmt.Errorf("%w: idempotency key", layout.ErrMalformed)
	}
	r, err := decodeRecord(value)
	if err == nil {
		_, err = command.DecodeResult(r.result)
	}
	return err
}

// Load reads the records of the engine into the index.
func (ix *Index) Load(eng engine.Engine) error {
	*ix = Index{eng: eng, records: make(map[string]*entry), replayed: ix.replayed}
	it, err := eng.Iter([]byte{layout.TableIdempotency}, []byte{layout.TableIdempotency + 1})
	if err != nil {
		return fmt.Errorf("read idempotency records: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		record, err := decodeRecord(it.Value())
		if err != nil {
			return err
		}
		key := string(it.Key()[1:])
		ix.add(&entry{
			key: key, clock: record.clock, place: record.place, bytes: sizeOf(key, it.Value()), hash: ix.hasher.Row(it.Key(), it.Value()),
		})
	}
	slices.SortFunc(ix.queue, func(a, b *entry) int { return a.place.compare(b.place) })
	return it.Err()
}

// sizeOf returns what a record counts.
func sizeOf(key string, value []byte) int64 {
	return int64(len(key)+len(value)) + overheadBytes
}

// appendRowKey appends the key in the engine of a record.
func appendRowKey(dst []byte, key string) []byte {
	return append(append(dst, layout.TableIdempotency), key...)
}

// Replay sets the result to the recorded one if the command is a repeat, or to a
// refusal if it must not run at all, for example because records take limit bytes. It
// reports whether it did either.
func (ix *Index) Replay(c *command.Command, limit int64, r *command.Result) (done bool, err error) {
	key := keyOf(c.Origin.Principal, c.Idempotency.Key)
	e := ix.records[key]
	if e == nil {
		if ix.bytes >= limit {
			Refuse(r, ix.bytes, limit)
			return true, nil
		}
		return false, nil
	}
	value := e.value
	if value == nil {
		if value, err = ix.eng.Get(nil, appendRowKey(nil, key)); err != nil {
			return false, fmt.Errorf("look up idempotency record: %w", err)
		}
	}
	record, err := decodeRecord(value)
	if err != nil {
		return false, err
	}
	if record.fingerprint != c.Idempotency.Fingerprint {
		r.Refuse(command.IdempotencyMismatch, "the idempotency key belongs to another request; use a new key for each request")
		return true, nil
	}
	if *r, err = command.DecodeResult(slices.Clone(record.result)); err != nil {
		return false, err
	}
	r.Replayed = true
	ix.replayed++
	return true, nil
}

// Refuse makes the result that of a command with a new key for which there is no room.
func Refuse(r *command.Result, bytes, limit int64) {
	r.Refuse(command.Busy, "the cluster remembers %d bytes about earlier requests, and the limit is %d (idempotency_bytes in the settings); release keys with Idempotency-Release, or try again later", bytes, limit)
}

// RowKey returns the key of the record of a command in the table.
func RowKey(c *command.Command) []byte { return []byte(keyOf(c.Origin.Principal, c.Idempotency.Key)) }

// recordable reports whether the command itself decided the outcome.
func recordable(o command.Outcome) bool {
	switch o {
	case command.NoSpace, command.Busy, command.Ignored, command.Invalid, command.IdempotencyMismatch, command.PermissionDenied:
		return false
	}
	return true
}

// Record records the result of a command.
//
// It does not go through the overlay: the command has been judged already. Nor does a
// record change, so the index knows the term of each in the state hash. A row of any
// other table would have to be read before it is deleted.
func (ix *Index) Record(c *command.Command, place Place, now *layout.Meta, writes engine.WriteBatch, r *command.Result) {
	if !recordable(r.Outcome) {
		return
	}
	key := keyOf(c.Origin.Principal, c.Idempotency.Key)
	e := &entry{key: key, clock: now.Clock, place: place}
	e.value = appendRecord(nil, e.clock, place, c.Idempotency.Fingerprint, r)
	e.bytes = sizeOf(key, e.value)
	ix.scratch = appendRowKey(ix.scratch[:0], key)
	e.hash = ix.hasher.Row(ix.scratch, e.value)
	now.Rest += e.hash
	writes.Set(ix.scratch, e.value)
	ix.add(e)
	ix.unsettled = append(ix.unsettled, e)
}

// Release deletes the records that the command releases. Keys that are unknown do not
// matter.
func (ix *Index) Release(c *command.Command, now *layout.Meta, writes engine.WriteBatch) {
	for _, key := range c.Release {
		if e := ix.records[keyOf(c.Origin.Principal, key)]; e != nil {
			ix.forget(e, now, writes)
		}
	}
}

func (ix *Index) forget(e *entry, now *layout.Meta, writes engine.WriteBatch) {
	now.Rest -= e.hash
	ix.scratch = appendRowKey(ix.scratch[:0], e.key)
	writes.Delete(ix.scratch)
	ix.remove(e)
}

// Age deletes a bounded number of the records that are older than the limit, and
// reports whether more of them are left.
func (ix *Index) Age(limit int64, now *layout.Meta, writes engine.WriteBatch) (more bool) {
	for range MaxAgedRecords {
		e := ix.oldest()
		if e == nil || now.Clock-e.clock <= limit {
			return false
		}
		ix.forget(e, now, writes)
	}
	e := ix.oldest()
	return e != nil && now.Clock-e.clock > limit
}
