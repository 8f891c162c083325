package kvstore

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/wire"
	"github.com/kvd-io/kvd/internal/rights"
)

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

func TestGoldenVersions(t *testing.T) {
	for name, v := range map[string]layout.Version{
		"version":         {Create: 300, Version: 2, Value: []byte("value")},
		"version_full":    {Create: 301, Version: 2, Lease: 70_000, Attributes: &Attributes{Flags: 1 << 63, LockIndex: 3, Holder: 70_001}},
		"version_deleted": {Deleted: true},
	} {
		got, err := layout.DecodeVersion(301, golden(t, name, layout.AppendVersion(nil, 301, &v)))
		if err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("%s: decoded %+v, %v; want %+v", name, got, err, v)
		}
	}
}

func TestGoldenMeta(t *testing.T) {
	m := layout.Meta{Position: Position{Index: 1, Term: 200}, Revision: 3, Compact: 4, Pairs: 1 << 63, Rest: 5, Keys: 6, Logical: 700, Clock: -8, HistoryBytes: 9, HistoryVersions: 1000}
	got, err := layout.DecodeMeta(golden(t, "meta", layout.AppendMeta(nil, &m)))
	if err != nil || got != m {
		t.Errorf("decoded %+v, %v; want %+v", got, err, m)
	}
}

func TestGoldenSettings(t *testing.T) {
	s := goldenSettings()
	got, err := decodeSettings(golden(t, "settings", encodeSettings(&s)))
	if err != nil || got != s {
		t.Errorf("decoded %+v, %v; want %+v", got, err, s)
	}
}

// goldenStore has at least one record in every table.
func goldenStore(t *testing.T) *Store {
	s := newStore(t, "memory")
	settings := DefaultSettings()
	settings.MaxValueBytes = 1 << 20 // the files must not depend on what the defaults are
	do(t, s, Command{Op: OpSettings, Settings: settings.Change()}, put("a", "1"), put("a", "2"), put("b\x00", "3"))
	do(t, s, Command{Op: OpTick, Term: 1, ElapsedMillis: 1_800_000_000_000}, remove("a"), put("a\xff", ""))
	do(t, s, put("c", "4"), Command{Op: OpDeleteRange, Key: []byte("b")}, Command{Op: OpCompact, Revision: 3})
	must(t, s.Apply([]Entry{{Index: 4, Term: 1, Records: []Record{recordOf("member", "one")}}}))
	bound := put("d", "5")
	bound.Lease, bound.Attributes = 7, &Attributes{Flags: 3}
	bound.Idempotency = &Idempotency{Key: "once", Fingerprint: [16]byte{1}}
	do(t, s, Command{Op: OpLeaseGrant, Lease: 7, TTLMillis: 60_000, Grant: &LeaseOptions{Name: "n"}}, bound,
		Command{Op: OpLock, Key: []byte("lock"), Lease: 7, Value: []byte("me")})
	do(t, s, Command{Op: OpRights, Rights: &rights.Change{PutUser: &rights.User{Name: "ann", Hash: []byte("hash")}}},
		Command{Op: OpRights, Rights: &rights.Change{PutRole: &rights.Role{Name: "team", Permissions: []rights.Permission{{Access: rights.Read, Key: []byte("a"), RangeEnd: []byte("b")}}}}},
		Command{Op: OpRights, Rights: &rights.Change{PutToken: &rights.Token{ID: "t", User: "ann", Label: "label", Sum: [32]byte{1}, Created: 2, Expires: 3}}},
		Command{Op: OpRights, Rights: &rights.Change{RotateKey: []byte("key")}})
	maintainAll(t, s)
	return s
}

// TestGoldenTables compares every record of a store, key and value.
func TestGoldenTables(t *testing.T) {
	v := mustGet[*View](t)(goldenStore(t).View())
	defer v.Close()
	var tables []byte
	content := make(map[byte][]byte)
	_, err := v.each(func(k, value []byte) error {
		if last := len(tables) - 1; last < 0 || tables[last] != k[0] {
			tables = append(tables, k[0])
		}
		content[k[0]] = wire.AppendBytes(wire.AppendBytes(content[k[0]], k), value)
		return nil
	})
	must(t, err)
	if string(tables) != "abchiklmnopqrstv" {
		t.Errorf("the store has the tables %q", tables)
	}
	for table, b := range content {
		golden(t, "table_"+string(table), b)
	}
}

// TestGoldenBody reads a body that was written once, whatever the compressor
// makes of the same content today.
func TestGoldenBody(t *testing.T) {
	s := goldenStore(t)
	path := filepath.Join("testdata", "snapshot.body")
	if *update {
		must(t, os.WriteFile(path, bodyOf(t, s), 0o644))
	}
	stored, err := os.ReadFile(path)
	must(t, err)
	info, err := VerifyBody(bytes.NewReader(stored))
	must(t, err)
	at, hash := s.StateHash()
	want := BodyInfo{Position: at, Revision: s.Revision(), CompactRevision: s.CompactRevision(), Keys: 2, Records: 25, StateHash: hash, Bytes: 1033}
	info.Sections = nil
	if !reflect.DeepEqual(info, want) {
		t.Errorf("body %+v, want %+v", info, want)
	}
	restored := newStore(t, "pebble")
	must(t, restored.Restore(bytes.NewReader(stored)))
	if got := bodyOf(t, restored); !bytes.Equal(got, bodyOf(t, s)) {
		t.Error("a restored store has another body")
	}
	checkCounters(t, restored)
	checkSamples(t, restored, s)
}

func checkSamples(t *testing.T, got, want *Store) {
	t.Helper()
	if !reflect.DeepEqual(got.timeline.Samples(), want.timeline.Samples()) || len(got.timeline.Samples()) == 0 {
		t.Errorf("samples %v, want %v", got.timeline.Samples(), want.timeline.Samples())
	}
}

// tablesOf is all that the engine holds.
func tablesOf(t *testing.T, s *Store) (out []byte) {
	v := mustGet[*View](t)(s.View())
	defer v.Close()
	_, err := v.each(func(k, value []byte) error {
		out = wire.AppendBytes(wire.AppendBytes(out, k), value)
		return nil
	})
	must(t, err)
	return out
}

// TestUnknownVersions: every reader refuses a record of a newer kvd.
func TestUnknownVersions(t *testing.T) {
	const newer = layout.RecordVersion + 1
	readers := map[string]func(b []byte) error{
		"meta":     func(b []byte) error { _, err := layout.DecodeMeta(b); return err },
		"change":   func(b []byte) error { _, err := changelog.Last(2, b); return err },
		"settings": func(b []byte) error { _, err := decodeSettings(b); return err },
	}
	for what, key := range map[string][]byte{"time": layout.TimeKey(1), "open meta": {layout.TableMeta}, "open settings": {layout.TableSetting}, "history": {layout.TableHistory}} {
		readers[what] = func(b []byte) error { return openWith(t, key, b) }
	}
	for what, read := range readers {
		var unknown *UnknownVersionError
		err := read([]byte{newer, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		if !errors.As(err, &unknown) || unknown.Version != newer || !strings.Contains(err.Error(), "upgrade") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// openWith opens a store whose engine has a record.
func openWith(t *testing.T, key, value []byte) error {
	e := newEngine(t, "memory")
	b := e.NewWriteBatch()
	b.Set(key, value)
	must(t, b.Commit())
	_, err := Open(e, Options{})
	return errors.Join(err, e.Close())
}

// TestMalformedRecords: readers refuse records that end too early.
func TestMalformedRecords(t *testing.T) {
	endless := binary.AppendUvarint([]byte{layout.RecordVersion}, 1<<40)
	endless = endless[:len(endless)-1]
	for what, err := range map[string]error{
		"history of 0":  openWith(t, []byte{layout.TableHistory}, []byte{layout.RecordVersion, 0, 0}),
		"meta":          openWith(t, []byte{layout.TableMeta}, endless),
		"empty meta":    openWith(t, []byte{layout.TableMeta}, nil),
		"time":          openWith(t, layout.TimeKey(1), endless),
		"time key":      openWith(t, []byte{layout.TableTime, 1}, []byte{layout.RecordVersion, 1}),
		"settings":      openWith(t, []byte{layout.TableSetting}, []byte{layout.RecordVersion, '{'}),
		"empty history": openWith(t, []byte{layout.TableHistory}, nil),
		"history":       openWith(t, []byte{layout.TableHistory}, endless),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	for n := range 3 {
		if _, err := layout.DecodeVersion(1<<50, append([]byte{0}, endless[1:1+n]...)); err == nil {
			t.Errorf("version of %d bytes: no error", 2+n)
		}
	}
}
