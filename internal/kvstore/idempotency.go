package kvstore

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

// A command with an idempotency key takes effect once, however often it is committed:
// its first result is recorded, in the write batch of its effects, and a repeat
// returns the record. Duplicates in flight need no more than that: the log puts them
// in an order, and the second one finds what the first one recorded.
//
// Recorded are the outcomes that the command itself decides. A refusal that passes
// by itself (NoSpace, Busy) is not, or a repeat could never succeed.
//
// Records age in replicated time, so that all replicas forget them at the same log
// position. They are in the state hash and in snapshots as rows of table i; the
// index in memory says which there are, so that a new key costs no lookup. Its queue is in the order of the clock,
// so that ageing looks at nothing that stays.

// idempotencyOverheadBytes is what a record counts besides its row: the row's key
// once more, and the index.
const idempotencyOverheadBytes = 160

// maxAgedRecords bounds the records that one tick forgets. The leader ticks again at
// once while more are left.
const maxAgedRecords = 10_000

// idempotencyIndex is what the executor knows about the records without asking the
// engine. It is the same on every replica, because Busy depends on it.
type idempotencyIndex struct {
	eng     engine.Engine
	hasher  statehash.Hasher
	scratch []byte                       // an engine key being built
	records map[string]*idempotencyEntry // by row key without the table
	queue   []*idempotencyEntry          // by clock; released ones stay until their turn
	bytes   int64
	// replayed counts the repeats that were answered. It belongs to this replica.
	replayed uint64
	// unsettled are the records whose rows are not in the engine yet.
	unsettled []*idempotencyEntry
}

// idempotencyEntry is a record in the index.
type idempotencyEntry struct {
	key      string
	place    logPlace
	clock    int64
	bytes    int64
	hash     uint64 // the term of the record in the state hash
	value    []byte // of the row, until it is in the engine
	released bool
}

// logPlace is the place of a command in the log. The queue is in its order, on a
// replica that restarted as well: if a tick can forget only some of the records of
// one clock, all replicas must choose the same ones.
type logPlace struct {
	index   uint64 // of the entry
	command uint64 // position in the entry
}

func (p logPlace) compare(q logPlace) int {
	return cmp.Or(cmp.Compare(p.index, q.index), cmp.Compare(p.command, q.command))
}

// Remembered are figures about the results that are kept for repeated commands.
type Remembered struct {
	Records int
	Bytes   int64  // with the index in memory; Settings.IdempotencyBytes is the limit
	Replays uint64 // repeats that were answered, since the store was opened
}

// stats returns the figures of the index.
func (ix *idempotencyIndex) stats() Remembered {
	return Remembered{Records: len(ix.records), Bytes: ix.bytes, Replays: ix.replayed}
}

func (ix *idempotencyIndex) add(e *idempotencyEntry) {
	ix.records[e.key] = e
	ix.queue = append(ix.queue, e)
	ix.bytes += e.bytes
}

// remove forgets a record. Its place in the queue is given up when its turn comes, or
// when most of the queue consists of such places.
func (ix *idempotencyIndex) remove(e *idempotencyEntry) {
	delete(ix.records, e.key)
	ix.bytes -= e.bytes
	e.released = true
	if len(ix.queue) > 2*len(ix.records)+1024 {
		ix.queue = slices.DeleteFunc(ix.queue, func(e *idempotencyEntry) bool { return e.released })
	}
}

// settle notes that all rows are in the engine.
func (ix *idempotencyIndex) settle() {
	for _, e := range ix.unsettled {
		e.value = nil
	}
	clear(ix.unsettled)
	ix.unsettled = ix.unsettled[:0]
}

// oldest returns the record whose turn it is, or nil.
func (ix *idempotencyIndex) oldest() *idempotencyEntry {
	for len(ix.queue) > 0 && ix.queue[0].released {
		ix.queue = ix.queue[1:]
	}
	if len(ix.queue) == 0 {
		return nil
	}
	return ix.queue[0]
}

// idempotencyKey returns the key of a record. The length keeps principal and key
// apart: nobody can name another principal's record.
func idempotencyKey(principal, key string) string {
	return string(wire.AppendBytes(nil, principal)) + key
}

// appendIdempotency appends a record: when it was made, by which command, for which
// request, and its result.
func appendIdempotency(dst []byte, clock int64, place logPlace, fingerprint [16]byte, r *Result) []byte {
	dst = binary.AppendVarint(append(dst, layout.RecordVersion), clock)
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, place.index), place.command)
	return command.AppendResult(append(dst, fingerprint[:]...), r)
}

// idempotencyRecord is a decoded record, whose result is decoded only if it is
// needed.
type idempotencyRecord struct {
	clock       int64
	place       logPlace
	fingerprint [16]byte
	result      []byte
}

func decodeIdempotency(b []byte) (idempotencyRecord, error) {
	d, err := layout.OpenRecord("idempotency", b)
	if err != nil {
		return idempotencyRecord{}, err
	}
	r := idempotencyRecord{clock: d.Varint(), place: logPlace{d.Uvarint(), d.Uvarint()}}
	copy(r.fingerprint[:], d.Take(16))
	r.result = d.Rest()
	if d.Failed {
		return idempotencyRecord{}, fmt.Errorf("%w: idempotency record", layout.ErrMalformed)
	}
	return r, nil
}

// checkIdempotencyRow refuses a row that this package would not have written. It is
// for rows from outside, in a body.
func checkIdempotencyRow(key, value []byte) error {
	d := wire.Decoder{B: key}
	d.Bytes()
	if n := len(d.B); d.Failed || n < 1 || n > MaxIdempotencyKeyBytes {
		return fmt.Errorf("%w: idempotency key", layout.ErrMalformed)
	}
	r, err := decodeIdempotency(value)
	if err == nil {
		_, err = command.DecodeResult(r.result)
	}
	return err
}

// load reads the records of the engine into the index.
func (ix *idempotencyIndex) load(eng engine.Engine) error {
	*ix = idempotencyIndex{eng: eng, records: make(map[string]*idempotencyEntry), replayed: ix.replayed}
	it, err := eng.Iter([]byte{layout.TableIdempotency}, []byte{layout.TableIdempotency + 1})
	if err != nil {
		return fmt.Errorf("read idempotency records: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		record, err := decodeIdempotency(it.Value())
		if err != nil {
			return err
		}
		key := string(it.Key()[1:])
		ix.add(&idempotencyEntry{
			key: key, clock: record.clock, place: record.place, bytes: idempotencySize(key, it.Value()), hash: ix.hasher.Row(it.Key(), it.Value()),
		})
	}
	slices.SortFunc(ix.queue, func(a, b *idempotencyEntry) int { return a.place.compare(b.place) })
	return it.Err()
}

// idempotencySize returns what a record counts.
func idempotencySize(key string, value []byte) int64 {
	return int64(len(key)+len(value)) + idempotencyOverheadBytes
}

// idempotencyRow returns the row of a record in the engine.
func idempotencyRow(dst []byte, key string) []byte {
	return append(append(dst, layout.TableIdempotency), key...)
}

// replay sets the result to the recorded one if the command is a repeat, or to a
// refusal if it must not run at all, for example because records take limit bytes. It
// reports whether it did either.
func (ix *idempotencyIndex) replay(c *Command, limit int64, r *Result) (done bool, err error) {
	key := idempotencyKey(c.Origin.Principal, c.Idempotency.Key)
	e := ix.records[key]
	if e == nil {
		if ix.bytes >= limit {
			r.Refuse(Busy, "the cluster remembers %d bytes about earlier requests, and the limit is %d (idempotency_bytes in the settings); release keys with Idempotency-Release, or try again later", ix.bytes, limit)
			return true, nil
		}
		return false, nil
	}
	value := e.value
	if value == nil {
		if value, err = ix.eng.Get(nil, idempotencyRow(nil, key)); err != nil {
			return false, fmt.Errorf("look up idempotency record: %w", err)
		}
	}
	record, err := decodeIdempotency(value)
	if err != nil {
		return false, err
	}
	if record.fingerprint != c.Idempotency.Fingerprint {
		r.Refuse(IdempotencyMismatch, "the idempotency key belongs to another request; use a new key for each request")
		return true, nil
	}
	if *r, err = command.DecodeResult(slices.Clone(record.result)); err != nil {
		return false, err
	}
	r.Replayed = true
	ix.replayed++
	return true, nil
}

// recordable reports whether the command itself decided the outcome.
func recordable(o Outcome) bool {
	switch o {
	case NoSpace, Busy, Ignored, Invalid, IdempotencyMismatch, PermissionDenied:
		return false
	}
	return true
}

// record records the result of a command.
//
// It does not go through the overlay: the command has been judged already. Nor does a
// record change, so the index knows the term of each in the state hash. A row of any
// other table would have to be read before it is deleted.
func (ix *idempotencyIndex) record(c *Command, place logPlace, now *layout.Meta, writes engine.WriteBatch, r *Result) {
	if !recordable(r.Outcome) {
		return
	}
	key := idempotencyKey(c.Origin.Principal, c.Idempotency.Key)
	e := &idempotencyEntry{key: key, clock: now.Clock, place: place}
	e.value = appendIdempotency(nil, e.clock, place, c.Idempotency.Fingerprint, r)
	e.bytes = idempotencySize(key, e.value)
	ix.scratch = idempotencyRow(ix.scratch[:0], key)
	e.hash = ix.hasher.Row(ix.scratch, e.value)
	now.Rest += e.hash
	writes.Set(ix.scratch, e.value)
	ix.add(e)
	ix.unsettled = append(ix.unsettled, e)
}

// release deletes the records that the command releases. Keys that are unknown do not
// matter.
func (ix *idempotencyIndex) release(c *Command, now *layout.Meta, writes engine.WriteBatch) {
	for _, key := range c.Release {
		if e := ix.records[idempotencyKey(c.Origin.Principal, key)]; e != nil {
			ix.forget(e, now, writes)
		}
	}
}

func (ix *idempotencyIndex) forget(e *idempotencyEntry, now *layout.Meta, writes engine.WriteBatch) {
	now.Rest -= e.hash
	ix.scratch = idempotencyRow(ix.scratch[:0], e.key)
	writes.Delete(ix.scratch)
	ix.remove(e)
}

// age deletes a bounded number of the records that are older than the limit, and
// reports whether more of them are left.
func (ix *idempotencyIndex) age(limit int64, now *layout.Meta, writes engine.WriteBatch) (more bool) {
	for range maxAgedRecords {
		e := ix.oldest()
		if e == nil || now.Clock-e.clock <= limit {
			return false
		}
		ix.forget(e, now, writes)
	}
	e := ix.oldest()
	return e != nil && now.Clock-e.clock > limit
}
