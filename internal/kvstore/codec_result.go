package kvstore

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The format of a result, as an idempotency record keeps it:
//
//	outcome, flags, more flags, revision, [the parts that the flags announce]
//
// Lengths and numbers are varints. Results nest as the operations of a transaction
// do, each behind its length.

var errResult = errors.New("recorded result is malformed")

// The parts of a result.
const (
	resultDetail    = 1 << 0
	resultKV        = 1 << 1
	resultPrevious  = 1 << 2
	resultPairs     = 1 << 3
	resultCount     = 1 << 4
	resultResults   = 1 << 5
	resultLease     = 1 << 6
	resultLock      = 1 << 7
	resultCreated   = 1 << 8
	resultMore      = 1 << 9
	resultSucceeded = 1 << 10
	resultDeleted   = 1 << 11
	resultCompact   = 1 << 12
	resultSettings  = 1 << 13
	knownResult     = 1<<14 - 1
)

// parts returns the parts that the result has.
func (r *Result) parts() (parts uint64) {
	for _, p := range [...]struct {
		part uint64
		has  bool
	}{
		{resultDetail, r.Detail != ""},
		{resultKV, r.KV.ModRevision != 0 || r.KV.Value != nil},
		{resultPrevious, r.Previous != nil},
		{resultPairs, r.Pairs != nil},
		{resultCount, r.Count != 0},
		{resultResults, r.Results != nil},
		{resultLease, r.Lease != nil},
		{resultLock, r.Lock != nil},
		{resultCreated, r.Created},
		{resultMore, r.More},
		{resultSucceeded, r.Succeeded},
		{resultDeleted, r.Deleted != 0},
		{resultCompact, r.CompactRevision != 0},
		{resultSettings, r.Settings != nil},
	} {
		if p.has {
			parts |= p.part
		}
	}
	return parts
}

// appendResult appends the form in which a result is recorded. Replayed is not part
// of it.
func appendResult(dst []byte, r *Result) []byte {
	parts := r.parts()
	dst = binary.AppendUvarint(append(dst, byte(r.Outcome)), parts)
	dst = binary.AppendUvarint(dst, r.Revision)
	if parts&resultDetail != 0 {
		dst = appendBytes(dst, r.Detail)
	}
	if parts&resultKV != 0 {
		dst = appendPair(dst, &r.KV)
	}
	if parts&resultPrevious != 0 {
		dst = appendPair(dst, r.Previous)
	}
	if parts&resultPairs != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Pairs)))
		for i := range r.Pairs {
			dst = appendPair(dst, &r.Pairs[i])
		}
	}
	for _, n := range [...]struct{ part, n uint64 }{{resultCount, r.Count}, {resultDeleted, r.Deleted}, {resultCompact, r.CompactRevision}} {
		if parts&n.part != 0 {
			dst = binary.AppendUvarint(dst, n.n)
		}
	}
	return appendRareResult(dst, r, parts)
}

// appendRareResult appends the parts that most results do not have.
func appendRareResult(dst []byte, r *Result, parts uint64) []byte {
	if parts&resultLease != 0 {
		dst = binary.AppendVarint(binary.AppendUvarint(dst, r.Lease.ID), r.Lease.TTLMillis)
		dst = appendBytes(dst, appendGrant(nil, &r.Lease.LeaseOptions))
	}
	if parts&resultLock != 0 {
		dst = appendTicket(dst, r.Lock)
	}
	if parts&resultSettings != 0 {
		dst = appendBytes(dst, encodeSettings(r.Settings))
	}
	if parts&resultResults != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Results)))
		for i := range r.Results {
			from := len(dst)
			dst = appendResult(dst, &r.Results[i])
			dst = insertLength(dst, from)
		}
	}
	return dst
}

// appendPair keeps absent and empty values apart.
func appendPair(dst []byte, kv *KV) []byte {
	hasValue := byte(0)
	if kv.Value != nil {
		hasValue = 1
	}
	dst = appendBytes(append(dst, hasValue), kv.Key)
	for _, n := range [...]uint64{kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease} {
		dst = binary.AppendUvarint(dst, n)
	}
	if hasValue == 1 {
		dst = appendBytes(dst, kv.Value)
	}
	return dst
}

func appendTicket(dst []byte, t *LockTicket) []byte {
	held := byte(0)
	if t.Held {
		held = 1
	}
	dst = appendBytes(append(dst, held), t.Name)
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, t.Token), t.Lease)
	return appendBytes(dst, t.Body)
}

// decodeResult decodes what appendResult appended. The byte slices of the result
// alias b.
func decodeResult(b []byte) (Result, error) {
	d := decoder{b: b}
	var r Result
	d.result(&r, 0)
	if d.failed || len(d.b) > 0 {
		return Result{}, fmt.Errorf("%w: outcome %d", errResult, r.Outcome)
	}
	return r, nil
}

func (d *decoder) result(r *Result, depth int) {
	r.Outcome = Outcome(d.byte())
	parts := d.uvarint()
	d.failIf(parts&^knownResult != 0)
	r.Revision = d.uvarint()
	if parts&resultDetail != 0 {
		r.Detail = string(d.bytes())
	}
	if parts&resultKV != 0 {
		d.pair(&r.KV)
	}
	if parts&resultPrevious != 0 {
		r.Previous = new(KV)
		d.pair(r.Previous)
	}
	if parts&resultPairs != 0 {
		r.Pairs = make([]KV, d.count(minPairBytes))
		for i := range r.Pairs {
			d.pair(&r.Pairs[i])
		}
	}
	for _, n := range [...]struct {
		part uint64
		to   *uint64
	}{{resultCount, &r.Count}, {resultDeleted, &r.Deleted}, {resultCompact, &r.CompactRevision}} {
		if parts&n.part != 0 {
			*n.to = d.uvarint()
		}
	}
	r.Created, r.More, r.Succeeded = parts&resultCreated != 0, parts&resultMore != 0, parts&resultSucceeded != 0
	d.rareResult(r, parts, depth)
}

func (d *decoder) rareResult(r *Result, parts uint64, depth int) {
	if parts&resultLease != 0 {
		r.Lease = &Lease{ID: d.uvarint(), TTLMillis: d.varint()}
		options := commandDecoder{decoder: decoder{b: d.bytes(), failed: d.failed}}
		if g := options.grant(); g != nil {
			r.Lease.LeaseOptions = *g
		}
		d.failIf(options.failed)
	}
	if parts&resultLock != 0 {
		r.Lock = d.ticket()
	}
	if parts&resultSettings != 0 {
		settings, err := decodeSettings(d.bytes())
		d.failIf(err != nil)
		r.Settings = &settings
	}
	if parts&resultResults != 0 {
		d.failIf(depth > MaxTxnDepth)
		r.Results = make([]Result, d.count(minResultBytes))
		for i := range r.Results {
			inner := decoder{b: d.bytes(), failed: d.failed}
			inner.result(&r.Results[i], depth+1)
			d.failIf(inner.failed || len(inner.b) > 0)
		}
	}
}

// The shortest encodings, which bound what a decoder allocates by what it has read.
const (
	minPairBytes   = 6
	minResultBytes = 4 // with its length
)

// count reads a number of elements that have at least so many bytes each.
func (d *decoder) count(least int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/least) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) pair(kv *KV) {
	hasValue := d.bits(1)
	if kv.Key = d.bytes(); len(kv.Key) == 0 {
		kv.Key = nil
	}
	for _, n := range [...]*uint64{&kv.CreateRevision, &kv.ModRevision, &kv.Version, &kv.Lease} {
		*n = d.uvarint()
	}
	if hasValue == 1 {
		kv.Value = d.bytes()
	}
}

func (d *decoder) ticket() *LockTicket {
	t := &LockTicket{Held: d.bits(1) == 1, Name: d.bytes()}
	t.Token, t.Lease, t.Body = d.uvarint(), d.uvarint(), d.bytes()
	return t
}
