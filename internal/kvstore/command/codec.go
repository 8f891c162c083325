package command

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/rights"
)

// The format of a command:
//
//	version, operation, flags, [envelope], key, [end], [conditions], [lease],
//	[time to live], [options], [read], operand
//
// The flags say which of the parts in brackets are there. Lengths and numbers are
// varints. There is no length for the whole: an entry of the log knows it. So the
// value of a put, its operand, is simply the rest.
//
// An operation of a transaction has the same format without the version, behind its
// length. It has no envelope, which is about the command as a whole.

// Version is the first byte of every command. A replica that does not know
// it must stop: skipping a command would make replicas diverge.
const Version = 2

var errCommand = errors.New("command is malformed")

// The flags of a command.
const (
	flagPrevious   = 1 << 0
	flagConditions = 1 << 1
	flagEnd        = 1 << 2
	flagLease      = 1 << 3
	flagTTL        = 1 << 4
	flagOptions    = 1 << 5
	flagRead       = 1 << 6
	flagEnvelope   = 1 << 7
)

// The options of a command, in a byte that is there if any is set.
const (
	optionKeepValue   = 1 << 0
	optionKeepLease   = 1 << 1
	optionUnlessEqual = 1 << 2
	optionWait        = 1 << 3
	optionOnlyWaiting = 1 << 4
	optionAttributes  = 1 << 5 // and they follow
	optionLockDelay   = 1 << 6 // and it follows
	knownOptions      = optionLockDelay | optionAttributes | optionKeepValue | optionKeepLease | optionUnlessEqual | optionWait | optionOnlyWaiting
)

// The parts of an envelope.
const (
	envelopeOrigin      = 1 << 0
	envelopeIdempotency = 1 << 1
	envelopeRelease     = 1 << 2
	knownEnvelope       = envelopeOrigin | envelopeIdempotency | envelopeRelease
)

// Encode appends the replicated form of the command to dst. What Txn.Check
// refuses must not be encoded: no replica would decode it.
func Encode(dst []byte, c *Command) []byte {
	dst = append(dst, Version)
	return appendOp(dst, c, c.envelope())
}

// envelope returns the parts of the envelope that the command has.
func (c *Command) envelope() (parts byte) {
	setBit(&parts, envelopeOrigin, c.Origin != Origin{})
	setBit(&parts, envelopeIdempotency, c.Idempotency != nil)
	setBit(&parts, envelopeRelease, len(c.Release) > 0)
	return parts
}

func setBit(bits *byte, bit byte, on bool) {
	if on {
		*bits |= bit
	}
}

func (c *Command) options() (options byte) {
	setBit(&options, optionKeepValue, c.KeepValue)
	setBit(&options, optionKeepLease, c.KeepLease)
	setBit(&options, optionUnlessEqual, c.UnlessEqual)
	setBit(&options, optionWait, c.Wait)
	setBit(&options, optionOnlyWaiting, c.OnlyWaiting)
	setBit(&options, optionAttributes, c.Attributes != nil && *c.Attributes != Attributes{})
	setBit(&options, optionLockDelay, c.LockDelayMillis() != 0)
	return options
}

// reads reports whether the command says how to read, other than by the defaults.
func (c *Command) reads() bool { return c.Read != nil && *c.Read != Read{} }

func appendOp(dst []byte, c *Command, envelope byte) []byte {
	var flags byte
	options := c.options()
	setBit(&flags, flagPrevious, c.ReturnPrevious)
	setBit(&flags, flagConditions, len(c.Conditions) > 0)
	setBit(&flags, flagEnd, c.End != nil)
	setBit(&flags, flagLease, c.Lease != 0)
	setBit(&flags, flagTTL, c.TTLMillis != 0)
	setBit(&flags, flagOptions, options != 0)
	setBit(&flags, flagRead, c.reads())
	setBit(&flags, flagEnvelope, envelope != 0)
	dst = append(dst, byte(c.Op), flags)
	if envelope != 0 {
		dst = appendEnvelope(dst, c, envelope)
	}
	dst = wire.AppendBytes(dst, c.Key)
	if flags&^(flagPrevious|flagEnvelope) != 0 {
		dst = appendParts(dst, c, flags, options)
	}
	return appendOperand(dst, c)
}

// appendParts appends the optional parts after the key.
func appendParts(dst []byte, c *Command, flags, options byte) []byte {
	if flags&flagEnd != 0 {
		dst = wire.AppendBytes(dst, c.End)
	}
	if flags&flagConditions != 0 {
		dst = appendConditions(dst, c.Conditions)
	}
	if flags&flagLease != 0 {
		dst = binary.AppendUvarint(dst, c.Lease)
	}
	if flags&flagTTL != 0 {
		dst = binary.AppendVarint(dst, c.TTLMillis)
	}
	if flags&flagOptions != 0 {
		dst = append(dst, options)
		if options&optionAttributes != 0 {
			dst = AppendAttributes(dst, c.Attributes)
		}
		if options&optionLockDelay != 0 {
			dst = binary.AppendVarint(dst, c.LockDelayMillis())
		}
	}
	if flags&flagRead != 0 {
		dst = appendRead(dst, c.Read)
	}
	return dst
}

// AppendAttributes appends the numbers of the attributes.
func AppendAttributes(dst []byte, a *Attributes) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(dst, a.Flags), a.LockIndex), a.Holder)
}

// DecodeAttributes decodes what AppendAttributes appended. Attributes that are all 0 are
// not encoded.
func DecodeAttributes(d *wire.Decoder) *Attributes {
	a := &Attributes{Flags: d.Uvarint(), LockIndex: d.Uvarint(), Holder: d.Uvarint()}
	d.FailIf(*a == Attributes{})
	return a
}

func appendEnvelope(dst []byte, c *Command, parts byte) []byte {
	dst = append(dst, parts)
	if parts&envelopeOrigin != 0 {
		o := &c.Origin
		dst = wire.AppendBytes(wire.AppendBytes(wire.AppendBytes(dst, o.RequestID), o.Client), o.Principal)
		dst = binary.AppendUvarint(dst, o.AuthRevision)
	}
	if parts&envelopeIdempotency != 0 {
		dst = append(wire.AppendBytes(dst, c.Idempotency.Key), c.Idempotency.Fingerprint[:]...)
	}
	if parts&envelopeRelease != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(c.Release)))
		for _, key := range c.Release {
			dst = wire.AppendBytes(dst, key)
		}
	}
	return dst
}

func appendConditions(dst []byte, conditions []Condition) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(conditions)))
	for _, c := range conditions {
		anything := byte(0)
		if c.Any {
			anything = 1
		}
		dst = append(dst, byte(c.Kind), anything)
		dst = binary.AppendUvarint(dst, uint64(len(c.Revisions)))
		for _, r := range c.Revisions {
			dst = binary.AppendUvarint(dst, r)
		}
	}
	return dst
}

// The flags of a read.
const (
	readReverse   = 1 << 0
	readKeysOnly  = 1 << 1
	readCountOnly = 1 << 2
	knownRead     = readReverse | readKeysOnly | readCountOnly
)

func appendRead(dst []byte, r *Read) []byte {
	var flags byte
	setBit(&flags, readReverse, r.Reverse)
	setBit(&flags, readKeysOnly, r.KeysOnly)
	setBit(&flags, readCountOnly, r.CountOnly)
	dst = append(dst, flags, byte(r.SortBy))
	for _, n := range r.numbers() {
		dst = binary.AppendUvarint(dst, *n)
	}
	return dst
}

// numbers returns the numbers of a read in the order of the format.
func (r *Read) numbers() [6]*uint64 {
	return [6]*uint64{&r.Revision, &r.Limit, &r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision}
}

// appendOperand appends the part that only the operation of the command has.
func appendOperand(dst []byte, c *Command) []byte {
	switch c.Op {
	case OpPut, OpAppend, OpLock:
		return append(dst, c.Value...) // the rest of the command, so it needs no length
	case OpIncr:
		return binary.AppendVarint(dst, c.Delta)
	case OpTick:
		return binary.AppendVarint(binary.AppendUvarint(dst, c.Term), c.ElapsedMillis)
	case OpCompact:
		return binary.AppendUvarint(binary.AppendUvarint(dst, c.Term), c.Revision)
	case OpSettings:
		return appendSettingsChange(binary.AppendUvarint(dst, c.Term), c.Settings)
	case OpTxn:
		return appendTxn(dst, c.Txn)
	case OpRights:
		return append(dst, rights.EncodeChange(c.Rights)...)
	case OpLeaseGrant:
		return appendGrant(dst, c.Grant)
	case OpLeaseExpire:
		dst = binary.AppendUvarint(binary.AppendUvarint(dst, c.Term), c.Sequence)
		for _, id := range c.Leases {
			dst = binary.AppendUvarint(dst, id)
		}
	}
	return dst
}

// appendSettingsChange appends a bit for each setting, and the values of those that
// change.
func appendSettingsChange(dst []byte, c *SettingsChange) []byte {
	var present uint64
	var values []byte
	signed := c.signed()
	for i, value := range signed {
		if *value != nil {
			present |= 1 << i
			values = binary.AppendVarint(values, **value)
		}
	}
	if c.RetentionRevisions != nil {
		present |= 1 << len(signed)
		values = binary.AppendUvarint(values, *c.RetentionRevisions)
	}
	return append(binary.AppendUvarint(dst, present), values...)
}

// appendGrant appends nothing for the defaults.
func appendGrant(dst []byte, g *LeaseOptions) []byte {
	if g == nil || *g == (LeaseOptions{}) {
		return dst
	}
	dst = append(dst, byte(g.AtEnd))
	dst = binary.AppendVarint(dst, g.LockDelayMillis)
	return append(dst, g.Name...)
}

func appendTxn(dst []byte, t *Txn) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(t.If)))
	for i := range t.If {
		dst = appendCompare(dst, &t.If[i])
	}
	for _, branch := range [][]Command{t.Then, t.Else} {
		dst = binary.AppendUvarint(dst, uint64(len(branch)))
		for i := range branch {
			from := len(dst)
			dst = appendOp(dst, &branch[i], 0)
			dst = insertLength(dst, from)
		}
	}
	return dst
}

// insertLength moves what was appended after from back, to put its length before it.
func insertLength(dst []byte, from int) []byte {
	var length [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(length[:], uint64(len(dst)-from))
	dst = append(dst, length[:n]...)
	copy(dst[from+n:], dst[from:len(dst)-n])
	copy(dst[from:], length[:n])
	return dst
}

// The flags of a comparison, beside its target in the low bits.
const (
	compareRange  = 1 << 6
	compareEnd    = 1 << 7
	compareTarget = compareRange - 1
)

func appendCompare(dst []byte, c *Compare) []byte {
	target := byte(c.Target)
	setBit(&target, compareRange, c.Range)
	setBit(&target, compareEnd, c.Range && c.End != nil)
	dst = wire.AppendBytes(append(dst, target, byte(c.Relation)), c.Key)
	if target&compareEnd != 0 {
		dst = wire.AppendBytes(dst, c.End)
	}
	if c.Target == CompareValue {
		return wire.AppendBytes(dst, c.Value)
	}
	return binary.AppendUvarint(dst, c.Number)
}

// Decode decodes what Encode encoded. The byte slices of the command
// alias b. It refuses everything that Encode does not produce, up to the last
// byte: what one version of kvd overlooks and another reads would make replicas
// diverge.
func Decode(b []byte) (Command, error) {
	var c Command
	err := c.Decode(b)
	return c, err
}

// Decode sets the command, which must be zero, to what b encodes.
func (c *Command) Decode(b []byte) error {
	if len(b) < 3 {
		return fmt.Errorf("%w: %d bytes", errCommand, len(b))
	}
	if b[0] != Version {
		return &wire.UnknownVersionError{What: "command", Version: b[0]}
	}
	d := commandDecoder{Decoder: wire.Decoder{B: b[1:]}, ops: limits.MaxTxnOps, compares: limits.MaxTxnOps}
	d.op(c)
	if d.Failed || len(d.B) > 0 {
		return fmt.Errorf("%w: operation %d", errCommand, c.Op)
	}
	return nil
}

// commandDecoder decodes a command and the operations in it.
type commandDecoder struct {
	wire.Decoder
	depth int // of transactions around the current operation
	// ops and compares are how many further operations and comparisons are
	// accepted. An operation takes a hundred times the memory of its shortest
	// encoding, so the length of the input is no bound.
	ops, compares int
}

func (d *commandDecoder) op(c *Command) {
	c.Op = Op(d.Byte())
	flags := d.Byte()
	c.ReturnPrevious = flags&flagPrevious != 0
	if flags&flagEnvelope != 0 {
		d.FailIf(d.depth > 0)
		d.envelope(c)
	}
	c.Key = d.Bytes()
	if flags&^(flagPrevious|flagEnvelope) != 0 {
		d.parts(c, flags)
	}
	d.operand(c)
}

func (d *commandDecoder) parts(c *Command, flags byte) {
	if flags&flagEnd != 0 {
		c.End = d.Bytes()
	}
	if flags&flagConditions != 0 {
		c.Conditions = d.conditions()
	}
	if flags&flagLease != 0 {
		c.Lease = d.Uvarint()
		d.FailIf(c.Lease == 0)
	}
	if flags&flagTTL != 0 {
		c.TTLMillis = d.Varint()
		d.FailIf(c.TTLMillis == 0)
	}
	if flags&flagOptions != 0 {
		d.options(c)
	}
	if flags&flagRead != 0 {
		c.Read = d.read()
	}
}

func (d *commandDecoder) options(c *Command) {
	options := d.Bits(knownOptions)
	d.FailIf(options == 0)
	c.KeepValue = options&optionKeepValue != 0
	c.KeepLease = options&optionKeepLease != 0
	c.UnlessEqual = options&optionUnlessEqual != 0
	c.Wait = options&optionWait != 0
	c.OnlyWaiting = options&optionOnlyWaiting != 0
	if options&optionAttributes != 0 {
		c.Attributes = DecodeAttributes(&d.Decoder)
	}
	if options&optionLockDelay != 0 {
		c.Grant = &LeaseOptions{LockDelayMillis: d.Varint()}
		d.FailIf(c.Op != OpLock || c.Grant.LockDelayMillis == 0)
	}
}

func (d *commandDecoder) envelope(c *Command) {
	parts := d.Bits(knownEnvelope)
	d.FailIf(parts == 0)
	if parts&envelopeOrigin != 0 {
		o := &c.Origin
		o.RequestID, o.Client, o.Principal = string(d.Bytes()), string(d.Bytes()), string(d.Bytes())
		o.AuthRevision = d.Uvarint()
		d.FailIf(*o == Origin{})
	}
	if parts&envelopeIdempotency != 0 {
		c.Idempotency = &Idempotency{Key: string(d.Bytes())}
		copy(c.Idempotency.Fingerprint[:], d.Take(uint64(len(c.Idempotency.Fingerprint))))
	}
	if parts&envelopeRelease != 0 {
		n := d.Uvarint()
		d.FailIf(n == 0 || n > limits.MaxReleases)
		for i := uint64(0); i < n && !d.Failed; i++ {
			c.Release = append(c.Release, string(d.Bytes()))
		}
	}
}

// conditions refuses more than limits allow, so that a decoder cannot be made to
// allocate more than it has read.
func (d *commandDecoder) conditions() []Condition {
	n := d.Uvarint()
	if n == 0 || n > limits.MaxConditions {
		d.Fail()
		return nil
	}
	out := make([]Condition, 0, n)
	for range n {
		c := Condition{Kind: ConditionKind(d.Byte())}
		c.Any = d.Bits(1) == 1
		count := d.Uvarint()
		if count > limits.MaxTags || c.Kind < IfMatch || c.Kind > IfRevision || c.Kind == IfRevision && count != 1 {
			d.Fail()
			return nil
		}
		for range count {
			c.Revisions = append(c.Revisions, d.Uvarint())
		}
		out = append(out, c)
	}
	return out
}

func (d *commandDecoder) read() *Read {
	flags := d.Bits(knownRead)
	r := &Read{Reverse: flags&readReverse != 0, KeysOnly: flags&readKeysOnly != 0, CountOnly: flags&readCountOnly != 0, SortBy: SortBy(d.Byte())}
	for _, n := range r.numbers() {
		*n = d.Uvarint()
	}
	d.FailIf(*r == Read{} || r.SortBy > SortByValue)
	return r
}

func (d *commandDecoder) operand(c *Command) {
	switch c.Op {
	case OpPut, OpAppend, OpLock:
		c.Value = d.Rest()
	case OpIncr:
		c.Delta = d.Varint()
	case OpTick:
		c.Term, c.ElapsedMillis = d.Uvarint(), d.Varint()
	case OpCompact:
		c.Term, c.Revision = d.Uvarint(), d.Uvarint()
	case OpSettings:
		c.Term = d.Uvarint()
		c.Settings = d.settingsChange()
	case OpTxn:
		c.Txn = d.txn()
	case OpRights:
		c.Rights = d.rights()
	case OpLeaseGrant:
		c.Grant = d.grant()
	case OpLeaseExpire:
		c.Term, c.Sequence = d.Uvarint(), d.Uvarint()
		for len(d.B) > 0 {
			c.Leases = append(c.Leases, d.Uvarint())
		}
	case OpDelete, OpDeleteRange, OpGet, OpList, OpLeaseRevoke, OpUnlock, OpForget:
	default:
		d.Fail()
	}
}

func (d *commandDecoder) settingsChange() *SettingsChange {
	c := new(SettingsChange)
	signed := c.signed()
	present := d.Uvarint()
	d.FailIf(present >= 1<<(len(signed)+1))
	for i, value := range signed {
		if present&(1<<i) != 0 {
			*value = new(int64)
			**value = d.Varint()
		}
	}
	if present&(1<<len(signed)) != 0 {
		c.RetentionRevisions = new(uint64)
		*c.RetentionRevisions = d.Uvarint()
	}
	return c
}

func (d *commandDecoder) rights() *rights.Change {
	c, err := rights.DecodeChange(d.Rest())
	d.FailIf(err != nil)
	return c
}

func (d *commandDecoder) grant() *LeaseOptions {
	if len(d.B) == 0 {
		return nil
	}
	g := &LeaseOptions{AtEnd: LeaseEnd(d.Byte()), LockDelayMillis: d.Varint()}
	g.Name = string(d.Rest())
	d.FailIf(g.AtEnd > LeaseReleases || *g == LeaseOptions{})
	return g
}

// minItemBytes is the shortest encoding of an operation and of a comparison.
const minItemBytes = 4

// count returns the number of items of a list and takes it off what is left.
func (d *commandDecoder) count(left *int) int {
	n := d.Uvarint()
	if n > uint64(*left) || n > uint64(len(d.B)/minItemBytes) {
		d.Fail()
		return 0
	}
	*left -= int(n)
	return int(n)
}

func (d *commandDecoder) txn() *Txn {
	t := new(Txn)
	if d.depth++; d.depth > MaxTxnDepth {
		d.Fail()
		return t
	}
	if n := d.count(&d.compares); n > 0 {
		t.If = make([]Compare, n)
	}
	for i := range t.If {
		d.compare(&t.If[i])
	}
	t.Then, t.Else = d.branch(), d.branch()
	d.depth--
	return t
}

func (d *commandDecoder) branch() []Command {
	n := d.count(&d.ops)
	if n == 0 {
		return nil
	}
	out := make([]Command, n)
	for i := range out {
		b := d.Bytes()
		after := d.B
		d.B = b
		d.op(&out[i])
		if d.Failed || len(d.B) > 0 || !out[i].Op.InTxn() {
			d.Fail()
			return nil
		}
		d.B = after
	}
	return out
}

func (d *commandDecoder) compare(c *Compare) {
	target := d.Byte()
	c.Target, c.Relation = CompareTarget(target&compareTarget), Relation(d.Byte())
	c.Range = target&compareRange != 0
	c.Key = d.Bytes()
	if target&compareEnd != 0 {
		c.End = d.Bytes()
	}
	if c.Target == CompareValue {
		c.Value = d.Value()
	} else {
		c.Number = d.Uvarint()
	}
	d.FailIf(c.Target < CompareModRevision || c.Target > CompareExists || c.Relation < Equal || c.Relation > Less || c.End != nil && !c.Range)
}

// InTxn reports whether the operation may be part of a transaction.
func (o Op) InTxn() bool {
	switch o {
	case OpPut, OpDelete, OpDeleteRange, OpAppend, OpIncr, OpGet, OpList, OpTxn:
		return true
	}
	return false
}
