package command

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/rights"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares bytes with those of a file and returns the file's. What is
// in a file lies on disks: a difference asks for a new format version.
func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	if *update {
		must(t, os.WriteFile(path, []byte(hexLines(got)), 0o644))
	}
	text, err := os.ReadFile(path)
	must(t, err)
	want, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n got %x\nwant %x", name, got, want)
	}
	return want
}

func hexLines(b []byte) string {
	var out strings.Builder
	for len(b) > 0 {
		n := min(len(b), 32)
		out.WriteString(hex.EncodeToString(b[:n]) + "\n")
		b = b[n:]
	}
	return out.String()
}

func goldenSettings() Settings {
	return Settings{
		MaxKeyBytes: 1, MaxValueBytes: 2, QuotaBytes: 3 << 20, RetentionMillis: 4, RetentionRevisions: 5, MaxTxnOps: 6, MaxTxnBytes: 7,
		IdempotencyMillis: 8, IdempotencyBytes: 9 << 20,
	}
}

func goldenCommands() map[string]Command {
	settings := goldenSettings()
	return map[string]Command{
		"put": {Op: OpPut, Key: []byte("a\x00b"), Value: []byte("value"), ReturnPrevious: true, Conditions: []Condition{
			{Kind: IfMatch, Revisions: []uint64{7, 300}},
			{Kind: IfNoneMatch, Any: true},
			{Kind: IfMatch},
			{Kind: IfRevision, Revisions: []uint64{0}},
		}},
		"put_empty":        {Op: OpPut, Key: []byte{}},
		"delete":           {Op: OpDelete, Key: []byte("a")},
		"delete_range":     {Op: OpDeleteRange, Key: []byte("a"), End: []byte("b")},
		"delete_range_all": {Op: OpDeleteRange, Key: []byte{}},
		"append":           {Op: OpAppend, Key: []byte("a"), Value: []byte("tail")},
		"incr":             {Op: OpIncr, Key: []byte("a"), Delta: -300},
		"tick":             {Op: OpTick, Key: []byte{}, Term: 300, ElapsedMillis: 10_000},
		"compact":          {Op: OpCompact, Key: []byte{}, Term: 300, Revision: 70_000},
		"settings":         {Op: OpSettings, Key: []byte{}, Term: 300, Settings: settings.Change(), Origin: Origin{RequestID: "0123456789abcdef", Client: "10.0.0.1:4000"}},
		"put_options":      {Op: OpPut, Key: []byte("a"), Lease: 1<<63 - 1, KeepValue: true, KeepLease: true, UnlessEqual: true, Idempotency: &Idempotency{Key: "k-1", Fingerprint: [16]byte{1, 15: 2}}},
		"put_attributes":   {Op: OpPut, Key: []byte("a"), Attributes: &Attributes{Flags: 1 << 63, LockIndex: 2, Holder: 3}},
		"put_ttl":          {Op: OpPut, Key: []byte("a"), Value: []byte("v"), TTLMillis: 30_000, Origin: Origin{Principal: "alice", AuthRevision: 7}},
		"txn":              {Op: OpTxn, Key: []byte{}, Txn: goldenTxn()},
		"txn_empty":        {Op: OpTxn, Key: []byte{}, Txn: &Txn{}},
		"lease_grant":      {Op: OpLeaseGrant, Key: []byte{}, Lease: 5, TTLMillis: 60_000, Grant: &LeaseOptions{Name: "n", AtEnd: LeaseReleases, LockDelayMillis: 15_000}},
		"lease_auto":       {Op: OpLeaseGrant, Key: []byte{}, TTLMillis: 60_000},
		"lease_end":        {Op: OpLeaseRevoke, Key: []byte{}, Lease: 5},
		"lease_late":       {Op: OpLeaseExpire, Key: []byte{}, Term: 3, Sequence: 200, Leases: []uint64{5, 300}},
		"lock":             {Op: OpLock, Key: []byte("l"), Value: []byte("me"), Lease: 5, Wait: true},
		"lock_delay":       {Op: OpLock, Key: []byte("l"), Value: []byte("me"), TTLMillis: 5000, Wait: true, Grant: &LeaseOptions{LockDelayMillis: 15_000}},
		"unlock":           {Op: OpUnlock, Key: []byte("l"), Lease: 5, OnlyWaiting: true},
		"rights":           {Op: OpRights, Key: []byte{}, Rights: &rights.Change{Revision: 3, PutUser: &rights.User{Name: "ann", Hash: []byte("hash"), Roles: []string{"team"}}}},
		"forget":           {Op: OpForget, Key: []byte{}, Release: []string{"k-1", "k-2"}},
	}
}

func goldenTxn() *Txn {
	return &Txn{
		If: []Compare{
			{Key: []byte("a"), Target: CompareModRevision, Relation: Equal, Number: 300},
			{Key: []byte("b"), Range: true, End: []byte("c"), Target: CompareValue, Relation: Less, Value: []byte("x")},
			{Key: []byte{}, Range: true, Target: CompareExists, Relation: NotEqual},
		},
		Then: []Command{
			{Op: OpPut, Key: []byte("a"), Value: []byte("1")},
			{Op: OpGet, Key: []byte("a"), Read: &Read{Revision: 9, KeysOnly: true}},
			{Op: OpTxn, Key: []byte{}, Txn: &Txn{Else: []Command{{Op: OpIncr, Key: []byte("n"), Delta: 1}}}},
		},
		Else: []Command{
			{Op: OpList, Key: []byte("a"), End: []byte("b"), Read: &Read{Limit: 1, Reverse: true, CountOnly: true, SortBy: SortByCreateRevision, MinModRevision: 2, MaxModRevision: 3, MinCreateRevision: 4, MaxCreateRevision: 500}},
			{Op: OpDeleteRange, Key: []byte("a"), ReturnPrevious: true},
		},
	}
}

func TestGolden(t *testing.T) {
	for name, c := range goldenCommands() {
		b := golden(t, "command_"+name, Encode(nil, &c))
		got, err := Decode(b)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%s: decoded %+v, %v; want %+v", name, got, err, c)
		}
	}
}

// TestRefused: what Encode does not produce is refused.
func TestRefused(t *testing.T) {
	huge := binary.AppendUvarint(nil, math.MaxUint64)
	put := byte(OpPut)
	for name, b := range map[string][]byte{
		"empty":                {},
		"cut off":              {Version, put, 0, 5, 'a'},
		"unknown operation":    {Version, 200, 0, 0},
		"endless key":          append([]byte{Version, put, 0}, huge...),
		"endless conditions":   append([]byte{Version, put, flagConditions, 0}, huge...),
		"length in two bytes":  {Version, put, 0, 0x81, 0, 'a'},
		"no lease":             {Version, put, flagLease, 0, 0},
		"no time to live":      {Version, put, flagTTL, 0, 0},
		"no options":           {Version, put, flagOptions, 0, 0},
		"unknown option":       {Version, put, flagOptions, 0, 0x80},
		"no lock delay":        {Version, byte(OpLock), flagOptions, 0, optionLockDelay, 0},
		"lock delay of a put":  {Version, put, flagOptions, 0, optionLockDelay, 2},
		"default read":         {Version, byte(OpGet), flagRead, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"empty envelope":       {Version, put, flagEnvelope, 0, 0},
		"empty origin":         {Version, put, flagEnvelope, envelopeOrigin, 0, 0, 0, 0, 0},
		"no releases":          {Version, put, flagEnvelope, envelopeRelease, 0, 0},
		"unknown setting":      append([]byte{Version, byte(OpSettings), 0, 0, 0}, huge...),
		"data after the end":   {Version, byte(OpDelete), 0, 0, 0},
		"default grant":        {Version, byte(OpLeaseGrant), 0, 0, 0, 0},
		"endless comparisons":  append([]byte{Version, byte(OpTxn), 0, 0}, huge...),
		"endless operations":   append([]byte{Version, byte(OpTxn), 0, 0, 0}, huge...),
		"comparison of 0":      {Version, byte(OpTxn), 0, 0, 1, 0, 1, 0, 0, 0, 0},
		"end without a range":  {Version, byte(OpTxn), 0, 0, 1, compareEnd | 1, 1, 0, 0, 0, 0, 0},
		"inner envelope":       {Version, byte(OpTxn), 0, 0, 0, 1, 8, byte(OpDelete), flagEnvelope, envelopeRelease, 1, 1, 'k', 1, 'a', 0},
		"inner compaction":     {Version, byte(OpTxn), 0, 0, 0, 1, 5, byte(OpCompact), 0, 0, 0, 5, 0},
		"operation too long":   {Version, byte(OpTxn), 0, 0, 0, 1, 9, byte(OpDelete), 0, 0, 0},
		"rest of an operation": {Version, byte(OpTxn), 0, 0, 0, 1, 4, byte(OpDelete), 0, 0, 0, 0},
	} {
		if c, err := Decode(b); !errors.Is(err, errCommand) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	var unknown *wire.UnknownVersionError
	if _, err := Decode([]byte{Version + 1, put, 0, 0}); !errors.As(err, &unknown) || unknown.Version != Version+1 {
		t.Errorf("newer version: %v", err)
	}
}

// FuzzDecode: what is accepted is the one encoding of the command that it is read as.
func FuzzDecode(f *testing.F) {
	for _, c := range goldenCommands() {
		f.Add(Encode(nil, &c))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			return
		}
		if encoded := Encode(nil, &c); !bytes.Equal(encoded, b) {
			t.Fatalf("%x is %+v, which is encoded as %x", b, c, encoded)
		}
		if c.Txn != nil {
			must(t, c.Txn.Check())
		}
	})
}

// TestLargestCommand: no command is longer than the layers below expect.
func TestLargestCommand(t *testing.T) {
	text := strings.Repeat("t", limits.MaxOriginBytes)
	key := strings.Repeat("k", MaxIdempotencyKeyBytes)
	c := Command{
		Op: OpPut, Key: make([]byte, MaxKeyBytes), End: make([]byte, MaxKeyBytes), Value: make([]byte, limits.MaxValueBytes),
		Lease: math.MaxUint64, TTLMillis: math.MaxInt64, KeepLease: true,
		Origin:      Origin{RequestID: text, Client: text, Principal: text, AuthRevision: math.MaxUint64},
		Idempotency: &Idempotency{Key: key},
		Release:     slices.Repeat([]string{key}, limits.MaxReleases),
	}
	for range limits.MaxConditions {
		condition := Condition{Kind: IfMatch}
		for range limits.MaxTags {
			condition.Revisions = append(condition.Revisions, math.MaxUint64)
		}
		c.Conditions = append(c.Conditions, condition)
	}
	b := Encode(nil, &c)
	if len(b) > limits.MaxCommandBytes || len(b) < limits.MaxCommandBytes-100 {
		t.Errorf("the largest command has %d bytes, the limit is %d", len(b), limits.MaxCommandBytes)
	}
	if _, err := Decode(b); err != nil {
		t.Error(err)
	}
	c.Conditions = append(c.Conditions, c.Conditions[0])
	if _, err := Decode(Encode(nil, &c)); err == nil {
		t.Error("more conditions than the limit are decoded")
	}
}

// TestTxnCheck: what cannot be decoded is not encoded.
func TestTxnCheck(t *testing.T) {
	deep := &Txn{}
	for range MaxTxnDepth {
		deep = &Txn{Then: []Command{{Op: OpTxn, Txn: deep}}}
	}
	for name, txn := range map[string]*Txn{
		"too deep":        deep,
		"too many":        {Then: slices.Repeat([]Command{Command{Op: OpGet, Key: []byte("a")}}, limits.MaxTxnOps+1)},
		"too many ifs":    {If: slices.Repeat([]Compare{Compare{Key: []byte("a"), Target: CompareModRevision, Relation: Equal}}, limits.MaxTxnOps+1)},
		"an OpCompact":    {Else: []Command{{Op: OpCompact}}},
		"an inner origin": {Else: []Command{{Op: OpGet, Origin: Origin{Client: "c"}}}},
	} {
		if err := txn.Check(); !errors.Is(err, ErrTxn) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Decode(Encode(nil, &Command{Op: OpTxn, Txn: txn})); err == nil && name != "an inner origin" {
			t.Errorf("%s is decoded", name)
		}
	}
	must(t, deep.Then[0].Txn.Check())
}
