package command

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
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
		{resultKV, r.KV.ModRevision != 0 || len(r.KV.Value) > 0},
		{resultPrevious, r.Previous != nil},
		{resultPairs, len(r.Pairs) > 0},
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

// AppendResult appends the form in which a result is recorded. Replayed is not part
// of it.
func AppendResult(dst []byte, r *Result) []byte {
	parts := r.parts()
	dst = binary.AppendUvarint(append(dst, byte(r.Outcome)), parts)
	dst = binary.AppendUvarint(dst, r.Revision)
	if parts&resultDetail != 0 {
		dst = wire.AppendBytes(dst, r.Detail)
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
		dst = wire.AppendBytes(dst, appendGrant(nil, &r.Lease.LeaseOptions))
	}
	if parts&resultLock != 0 {
		dst = appendTicket(dst, r.Lock)
	}
	if parts&resultSettings != 0 {
		dst = wire.AppendBytes(dst, r.Settings.JSON())
	}
	if parts&resultResults != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Results)))
		for i := range r.Results {
			from := len(dst)
			dst = AppendResult(dst, &r.Results[i])
			dst = insertLength(dst, from)
		}
	}
	return dst
}

// The parts of a pair.
const (
	pairHasValue      = 1 << 0
	pairHasAttributes = 1 << 1
)

// appendPair appends a pair. An empty value is nil (wire.Value), and is recorded like one
// that was not asked for.
func appendPair(dst []byte, kv *KV) []byte {
	var parts byte
	setBit(&parts, pairHasValue, len(kv.Value) > 0)
	setBit(&parts, pairHasAttributes, kv.Attributes != nil)
	dst = wire.AppendBytes(append(dst, parts), kv.Key)
	for _, n := range [...]uint64{kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease} {
		dst = binary.AppendUvarint(dst, n)
	}
	if parts&pairHasValue != 0 {
		dst = wire.AppendBytes(dst, kv.Value)
	}
	if parts&pairHasAttributes != 0 {
		dst = AppendAttributes(dst, kv.Attributes)
	}
	return dst
}

func appendTicket(dst []byte, t *LockTicket) []byte {
	held := byte(0)
	if t.Held {
		held = 1
	}
	dst = wire.AppendBytes(append(dst, held), t.Name)
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, t.Token), t.Lease)
	return wire.AppendBytes(dst, t.Body)
}

// DecodeResult decodes what AppendResult appended. The byte slices of the result
// alias b.
func DecodeResult(b []byte) (Result, error) {
	d := resultDecoder{wire.Decoder{B: b}}
	var r Result
	d.result(&r, 0)
	if d.Failed || len(d.B) > 0 {
		return Result{}, fmt.Errorf("%w: outcome %d", errResult, r.Outcome)
	}
	return r, nil
}

// resultDecoder decodes a result and those in it.
type resultDecoder struct{ wire.Decoder }

func (d *resultDecoder) result(r *Result, depth int) {
	r.Outcome = Outcome(d.Byte())
	parts := d.Uvarint()
	d.FailIf(parts&^knownResult != 0)
	r.Revision = d.Uvarint()
	if parts&resultDetail != 0 {
		r.Detail = string(d.Bytes())
	}
	if parts&resultKV != 0 {
		d.pair(&r.KV)
		d.FailIf(r.KV.ModRevision == 0 && r.KV.Value == nil) // not announced without either
	}
	if parts&resultPrevious != 0 {
		r.Previous = new(KV)
		d.pair(r.Previous)
	}
	if parts&resultPairs != 0 {
		r.Pairs = make([]KV, d.count(minPairBytes))
		d.FailIf(len(r.Pairs) == 0)
		for i := range r.Pairs {
			d.pair(&r.Pairs[i])
		}
	}
	for _, n := range [...]struct {
		part uint64
		to   *uint64
	}{{resultCount, &r.Count}, {resultDeleted, &r.Deleted}, {resultCompact, &r.CompactRevision}} {
		if parts&n.part != 0 {
			*n.to = d.Uvarint()
		}
	}
	r.Created, r.More, r.Succeeded = parts&resultCreated != 0, parts&resultMore != 0, parts&resultSucceeded != 0
	d.rareResult(r, parts, depth)
}

func (d *resultDecoder) rareResult(r *Result, parts uint64, depth int) {
	if parts&resultLease != 0 {
		r.Lease = &Lease{ID: d.Uvarint(), TTLMillis: d.Varint()}
		options := commandDecoder{Decoder: wire.Decoder{B: d.Bytes(), Failed: d.Failed}}
		if g := options.grant(); g != nil {
			r.Lease.LeaseOptions = *g
		}
		d.FailIf(options.Failed)
	}
	if parts&resultLock != 0 {
		r.Lock = d.ticket()
	}
	if parts&resultSettings != 0 {
		r.Settings = new(Settings)
		d.FailIf(json.Unmarshal(d.Bytes(), r.Settings) != nil)
	}
	if parts&resultResults != 0 {
		d.FailIf(depth > MaxTxnDepth)
		r.Results = make([]Result, d.count(minResultBytes))
		for i := range r.Results {
			inner := resultDecoder{wire.Decoder{B: d.Bytes(), Failed: d.Failed}}
			inner.result(&r.Results[i], depth+1)
			d.FailIf(inner.Failed || len(inner.B) > 0)
		}
	}
}

// The shortest encodings, which bound what a decoder allocates by what it has read.
const (
	minPairBytes   = 6
	minResultBytes = 4 // with its length
)

// count reads a number of elements that have at least so many bytes each.
func (d *resultDecoder) count(least int) int {
	n := d.Uvarint()
	if n > uint64(len(d.B)/least) {
		d.Fail()
		return 0
	}
	return int(n)
}

func (d *resultDecoder) pair(kv *KV) {
	parts := d.Bits(pairHasValue | pairHasAttributes)
	kv.Key = d.Value()
	for _, n := range [...]*uint64{&kv.CreateRevision, &kv.ModRevision, &kv.Version, &kv.Lease} {
		*n = d.Uvarint()
	}
	if parts&pairHasValue != 0 {
		kv.Value = d.Value()
	}
	if parts&pairHasAttributes != 0 {
		kv.Attributes = DecodeAttributes(&d.Decoder)
	}
}

func (d *resultDecoder) ticket() *LockTicket {
	t := &LockTicket{Held: d.Bits(1) == 1, Name: d.Bytes()}
	t.Token, t.Lease, t.Body = d.Uvarint(), d.Uvarint(), d.Value()
	return t
}
