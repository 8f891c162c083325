package kvstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/limits"
)

// The format of a command: version, operation, flags, key, then whatever the flags
// announce, then the operand of the operation. Lengths and numbers are varints.
// There is no length for the whole: an entry of the log knows it.

// commandVersion is the first byte of every command. A replica that does not know
// it must stop: skipping a command would make replicas diverge.
const commandVersion = 1

// UnknownVersionError is returned for data that a newer kvd wrote.
type UnknownVersionError struct {
	What    string
	Version byte
}

func (e *UnknownVersionError) Error() string {
	return fmt.Sprintf("%s has format version %d, which this version of kvd cannot read; upgrade kvd", e.What, e.Version)
}

var errCommand = errors.New("command is malformed")

// The flags of a command.
const (
	flagPrevious   = 1 << 0
	flagConditions = 1 << 1
	flagEnd        = 1 << 2
	knownFlags     = flagPrevious | flagConditions | flagEnd
)

// EncodeCommand appends the replicated form of the command to dst.
func EncodeCommand(dst []byte, c *Command) []byte {
	var flags byte
	if c.ReturnPrevious {
		flags |= flagPrevious
	}
	if len(c.Conditions) > 0 {
		flags |= flagConditions
	}
	if c.End != nil {
		flags |= flagEnd
	}
	dst = append(dst, commandVersion, byte(c.Op), flags)
	dst = appendBytes(dst, c.Key)
	if c.End != nil {
		dst = appendBytes(dst, c.End)
	}
	if len(c.Conditions) > 0 {
		dst = appendConditions(dst, c.Conditions)
	}
	return appendOperand(dst, c)
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
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

// settingsOperand is the operand of OpSettings, in JSON: settings change rarely, and
// a later version can add a field.
type settingsOperand struct {
	Change *SettingsChange `json:"change"`
	Origin Origin          `json:"origin"`
}

// appendOperand appends the part that only the operation of the command has.
func appendOperand(dst []byte, c *Command) []byte {
	switch c.Op {
	case OpPut, OpAppend:
		return append(dst, c.Value...) // the rest of the command, so it needs no length
	case OpIncr:
		return binary.AppendVarint(dst, c.Delta)
	case OpTick:
		return binary.AppendVarint(binary.AppendUvarint(dst, c.Term), c.ElapsedMillis)
	case OpCompact:
		return binary.AppendUvarint(binary.AppendUvarint(dst, c.Term), c.Revision)
	case OpSettings:
		b, err := json.Marshal(settingsOperand{c.Settings, c.Origin})
		if err != nil {
			panic(fmt.Sprintf("kvstore: encode settings: %v", err)) // plain data always encodes
		}
		return append(binary.AppendUvarint(dst, c.Term), b...)
	}
	return dst
}

// DecodeCommand decodes what EncodeCommand encoded. The byte slices of the command
// alias b. It refuses everything that EncodeCommand does not produce, up to the last
// byte: what one version of kvd overlooks and another reads would make replicas
// diverge.
func DecodeCommand(b []byte) (Command, error) {
	if len(b) < 3 {
		return Command{}, fmt.Errorf("%w: %d bytes", errCommand, len(b))
	}
	if b[0] != commandVersion {
		return Command{}, &UnknownVersionError{What: "command", Version: b[0]}
	}
	c := Command{Op: Op(b[1])}
	flags := b[2]
	if flags&^knownFlags != 0 {
		return Command{}, fmt.Errorf("%w: flags %#x", errCommand, flags)
	}
	c.ReturnPrevious = flags&flagPrevious != 0
	d := decoder{b: b[3:]}
	c.Key = d.bytes()
	if flags&flagEnd != 0 {
		c.End = d.bytes()
	}
	if flags&flagConditions != 0 {
		c.Conditions = d.conditions()
	}
	d.operand(&c)
	if d.failed || len(d.b) > 0 {
		return Command{}, fmt.Errorf("%w: operation %d", errCommand, c.Op)
	}
	return c, nil
}

// decoder cuts fields off the front of b. After the first malformed field it has
// failed, and every further field is zero, so that callers check once at the end.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) fail() { d.failed, d.b = true, nil }

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) rest() []byte {
	v := d.b
	d.b = nil
	return v
}

// conditions refuses more than limits allow, so that a decoder cannot be made to
// allocate more than it has read.
func (d *decoder) conditions() []Condition {
	n := d.uvarint()
	if n == 0 || n > limits.MaxConditions {
		d.fail()
		return nil
	}
	out := make([]Condition, 0, n)
	for range n {
		c := Condition{Kind: ConditionKind(d.byte())}
		anything := d.byte()
		c.Any = anything == 1
		count := d.uvarint()
		if count > limits.MaxTags || anything > 1 || c.Kind < IfMatch || c.Kind > IfRevision || c.Kind == IfRevision && count != 1 {
			d.fail()
			return nil
		}
		for range count {
			c.Revisions = append(c.Revisions, d.uvarint())
		}
		out = append(out, c)
	}
	return out
}

func (d *decoder) operand(c *Command) {
	switch c.Op {
	case OpPut, OpAppend:
		c.Value = d.rest()
	case OpIncr:
		c.Delta = d.varint()
	case OpTick:
		c.Term, c.ElapsedMillis = d.uvarint(), d.varint()
	case OpCompact:
		c.Term, c.Revision = d.uvarint(), d.uvarint()
	case OpSettings:
		c.Term = d.uvarint()
		var o settingsOperand
		if json.Unmarshal(d.rest(), &o) != nil || o.Change == nil {
			d.fail()
		}
		c.Settings, c.Origin = o.Change, o.Origin
	case OpDelete, OpDeleteRange:
	default:
		d.fail()
	}
}

// recordVersion is the first byte of every value that the store itself keeps in the
// engine. Records of the replication layer are opaque and have none.
const recordVersion = 1

// version is a value in table v.
type version struct {
	deleted bool
	create  uint64
	version uint64
	lease   uint64
	value   []byte
}

func appendVersion(dst []byte, v *version) []byte {
	deleted := byte(0)
	if v.deleted {
		deleted = 1
	}
	dst = append(dst, recordVersion, deleted)
	dst = binary.AppendUvarint(dst, v.create)
	dst = binary.AppendUvarint(dst, v.version)
	dst = binary.AppendUvarint(dst, v.lease)
	return append(dst, v.value...)
}

// decodeVersion returns a version whose value aliases b.
func decodeVersion(b []byte) (version, error) {
	d, err := openRecord("version", b)
	if err != nil {
		return version{}, err
	}
	v := version{deleted: d.byte() == 1, create: d.uvarint(), version: d.uvarint(), lease: d.uvarint()}
	if d.failed {
		return version{}, fmt.Errorf("%w: version record", errLayout)
	}
	v.value = d.rest()
	return v, nil
}

func openRecord(what string, b []byte) (decoder, error) {
	if len(b) == 0 {
		return decoder{}, fmt.Errorf("%w: empty %s record", errLayout, what)
	}
	if b[0] != recordVersion {
		return decoder{}, &UnknownVersionError{What: what + " record", Version: b[0]}
	}
	return decoder{b: b[1:]}, nil
}

// meta is the value in table m: the position and what is known there. It is written
// in the same write batch as the data (S1).
type meta struct {
	position Position
	revision uint64
	compact  uint64
	hash     uint64
	keys     uint64
	logical  int64 // bytes that the quota counts
	clock    int64 // replicated time in Unix milliseconds
	// How much superseded data is still there. Replicas differ in it, and the hash
	// does not cover it.
	historyBytes    int64
	historyVersions int64
}

func appendMeta(dst []byte, m *meta) []byte {
	dst = append(dst, recordVersion)
	for _, v := range []uint64{m.position.Index, m.position.Term, m.revision, m.compact, m.hash, m.keys} {
		dst = binary.AppendUvarint(dst, v)
	}
	for _, v := range []int64{m.logical, m.clock, m.historyBytes, m.historyVersions} {
		dst = binary.AppendVarint(dst, v)
	}
	return dst
}

func decodeMeta(b []byte) (meta, error) {
	d, err := openRecord("meta", b)
	if err != nil {
		return meta{}, err
	}
	var m meta
	for _, v := range []*uint64{&m.position.Index, &m.position.Term, &m.revision, &m.compact, &m.hash, &m.keys} {
		*v = d.uvarint()
	}
	for _, v := range []*int64{&m.logical, &m.clock, &m.historyBytes, &m.historyVersions} {
		*v = d.varint()
	}
	if d.failed || len(d.b) > 0 {
		return meta{}, fmt.Errorf("%w: meta record", errLayout)
	}
	return m, nil
}
